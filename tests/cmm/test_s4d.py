"""S4D: its zero-order-hold kernel, its block, and the original's parameters."""

import math

import pytest
import torch
from golden import case_names, load
from numerics import assert_close, assert_within_budget

from firebolt_vl.cmm import S4D
from firebolt_vl.cmm.s4d import zero_order_hold

CASES = [name for name in case_names("s4d_kernel") if name.startswith("firebolt")]
BLOCK_CASES = [name for name in case_names("ssm_blocks") if name.startswith("s4d_")]


def kernel_with(case, dtype):
    parameters = load("s4d_kernel").under(f"{case}.param")
    width, modes = parameters["A_imag"].shape
    kernel = S4D(width, 2 * modes).to(dtype).kernel
    with torch.no_grad():
        for name, tensor in parameters.items():
            getattr(kernel, name).copy_(tensor)
    return kernel


@pytest.mark.parametrize("case", CASES)
def test_kernel_and_its_gradients_are_the_original_s(case):
    vectors = load("s4d_kernel")
    kernel, K = kernel_with(case, torch.float64), vectors[f"{case}.out.K"]
    taps = kernel.taps(K.shape[-1])
    assert_close(taps, K)
    (taps * vectors[f"{case}.in.cotangent"]).sum().backward()
    for name in ("log_dt", "log_A_real", "A_imag", "C"):
        assert_close(getattr(kernel, name).grad, vectors[f"{case}.grad.{name}"])
    assert kernel.D.grad is None


@pytest.mark.parametrize("case", CASES)
def test_float32_kernel_is_within_the_original_s_error(case):
    vectors = load("s4d_kernel")
    K = vectors[f"{case}.out.K"]
    with torch.no_grad():
        taps = kernel_with(case, torch.float32).taps(K.shape[-1])
    assert_within_budget(taps, vectors[f"{case}.f32.out.K"], K)


@pytest.mark.parametrize("case", BLOCK_CASES)
def test_block_with_the_original_s_parameters_gives_its_output_and_gradients(case):
    vectors = load("ssm_blocks")
    entry = next(entry for entry in vectors.cases if entry["case"] == case)
    block = S4D(entry["H"], entry["d_state"]).double().eval()
    leaf = {name: tensor.requires_grad_() for name, tensor in vectors.under(f"{case}.param").items()}
    x = vectors[f"{case}.in.x"].requires_grad_()
    y = torch.func.functional_call(block, S4D.original_parameters(leaf), (x.mT,)).mT
    assert_close(y, vectors[f"{case}.out.y"])
    (y * vectors[f"{case}.in.cotangent"]).sum().backward()
    assert_close(x.grad, vectors[f"{case}.grad.x"])
    for name, parameter in leaf.items():
        assert_close(parameter.grad, vectors[f"{case}.grad.param.{name}"])


def test_original_parameters_name_what_is_missing():
    original = load("ssm_blocks").under("s4d_T10.param")
    del original["kernel.A_imag"]
    with pytest.raises(ValueError, match=r"kernel\.A_imag is missing"):
        S4D.original_parameters(original)


def test_initialisation_is_the_original_s():
    block, vectors = S4D(5), load("hippo_nplr").under("firebolt_s4d.param")
    assert_close(block.kernel.log_A_real[:1], vectors["log_A_real"], 1e-6)
    assert_close(block.kernel.A_imag[:1], vectors["A_imag"], 1e-6)
    assert torch.equal(block.kernel.A_imag[0], block.kernel.A_imag[4])
    assert (block.kernel.log_dt >= math.log(1e-3) - 1e-6).all()
    assert (block.kernel.log_dt <= math.log(1e-1) + 1e-6).all()


def test_a_small_step_loses_nothing_to_cancellation():
    A = torch.complex(torch.tensor([[-0.5, -0.5]]), torch.tensor([[0.0, 3.0]]))
    for dt in (1e-7, 1e-3, 1.0):
        _, b = zero_order_hold(A, torch.tensor([dt]))
        _, exact = zero_order_hold(A.to(torch.complex128), torch.tensor([dt], dtype=torch.float64))
        assert_close(b, exact, 5e-7)


def test_an_odd_state_is_refused():
    with pytest.raises(ValueError, match="state_size"):
        S4D(4, 7)
