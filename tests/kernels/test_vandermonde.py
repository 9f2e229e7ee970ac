"""vandermonde: kernels of diagonal state-space models."""

import golden
import pytest
import torch
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, assert_to_rounding, relative_error
from sequences import (
    assert_op_within_budget,
    assert_same_op,
    cotangent_layouts,
    lengths,
    outputs_and_gradients,
    random_modes,
)

from firebolt_vl.kernels import reference, vandermonde
from firebolt_vl.kernels.spectrum import pytorch

BOTH = pytest.mark.parametrize("op", [vandermonde, reference.vandermonde], ids=["public", "reference"])
CASES = golden.case_names("s4d_kernel")


def s4d_coefficients(case: str, parameters: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """c and log_z of the original's parameters (golden README, section 4)."""
    if case.startswith("firebolt"):
        A = torch.complex(-torch.exp(parameters["log_A_real"]), parameters["A_imag"])
        log_z = A * torch.exp(parameters["log_dt"]).unsqueeze(-1)
        return torch.view_as_complex(parameters["C"]) * (torch.exp(log_z) - 1) / A, log_z
    A = torch.complex(-torch.exp(parameters["A_real"]), -parameters["A_imag"])
    dt = torch.exp(parameters["inv_dt"])
    BC = (torch.view_as_complex(parameters["B"]) * torch.view_as_complex(parameters["C"])).squeeze(0)
    if "zoh" in case:
        return BC * (torch.exp(dt * A) - 1) / A, dt * A
    return BC * dt / (1 - dt * A / 2), torch.log((1 + dt * A / 2) / (1 - dt * A / 2))


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_s4d_kernels_and_gradients_are_the_originals(op, case):
    vectors = golden.load("s4d_kernel")
    parameters = {name: p.requires_grad_() for name, p in vectors.under(f"{case}.param").items()}
    wanted = vectors[f"{case}.out.K"]
    K = op(*s4d_coefficients(case, parameters), wanted.shape[-1])
    assert_close(K, wanted)
    (K * vectors[f"{case}.in.cotangent"]).sum().backward()
    for name, gradient in vectors.under(f"{case}.grad").items():
        assert_close(parameters[name].grad, gradient)


@BOTH
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("ss")])
def test_the_response_to_a_state_is_the_originals(op, case):
    vectors = golden.load("s4d_kernel")
    z, c = vectors[f"{case}.step.dA"], vectors[f"{case}.step.dC"].squeeze(0)
    wanted = vectors[f"{case}.out.K_state"]
    assert_close(op(c * z * vectors[f"{case}.in.state0"], torch.log(z), wanted.shape[-1]), wanted)


@given(data=st.data(), D=st.integers(1, 4), N=st.integers(1, 5), L=lengths, cotangent_layout=cotangent_layouts)
def test_value_and_gradients_are_the_references(data, D, N, L, cotangent_layout):
    c = data.draw(layouts(D, N, dtype=torch.complex128))
    log_z = data.draw(layouts(D, N, dtype=torch.complex128))
    log_z = torch.complex(-log_z.real.abs(), 4 * log_z.imag)
    assert_same_op(
        lambda c, log_z: vandermonde(c, log_z, L),
        lambda c, log_z: reference.vandermonde(c, log_z, L),
        (c, log_z),
        cotangent_layout,
    )


@BOTH
def test_gradcheck(op):
    c = torch.randn(2, 3, dtype=torch.complex128, requires_grad=True)
    log_z = random_modes(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, log_z: op(c, log_z, 7), (c, log_z))
    assert torch.autograd.gradgradcheck(lambda c, log_z: op(c, log_z, 5), (c, log_z))


@pytest.mark.parametrize("L", [4, 16, 100, 1000])
def test_float32_error_is_within_the_budget(L):
    log_z = random_modes(16, 16, dtype=torch.complex64)
    c = torch.randn(16, 16, dtype=torch.complex64)
    assert_op_within_budget(
        lambda c, log_z: vandermonde(c, log_z, L), lambda c, log_z: reference.vandermonde(c, log_z, L), (c, log_z)
    )


@pytest.mark.parametrize("L", [1, 2, 3, 64, 8192])
def test_float32_error_does_not_grow_with_the_length(L):
    log_z, c = random_modes(8, 32, dtype=torch.complex64), torch.randn(8, 32, dtype=torch.complex64)
    exact = reference.vandermonde(c.to(torch.complex128), log_z.to(torch.complex128), L)
    assert_to_rounding(vandermonde(c, log_z, L), exact, terms=32)


def test_float32_phases_stay_exact_over_many_turns():
    """The plain formula rounds l times an angle: 5e-5 of it lost here. The split does not."""
    L = 8192
    log_z = torch.complex(torch.full((4, 32), -1e-5), 9 + torch.rand(4, 32))
    c = torch.randn(4, 32, dtype=torch.complex64)
    exact = reference.vandermonde(c.to(torch.complex128), log_z.to(torch.complex128), L)
    assert relative_error(reference.vandermonde(c, log_z, L), exact) > 2e-5
    assert_to_rounding(vandermonde(c, log_z, L), exact, terms=32)


@pytest.mark.parametrize("L", [1, 9, 100])
def test_by_blocks_of_channels_it_is_the_whole_with_its_gradients(L, monkeypatch):
    c, log_z = torch.randn(7, 3, dtype=torch.complex128), random_modes(7, 3)
    whole = outputs_and_gradients(lambda c, log_z: vandermonde(c, log_z, L), (c, log_z))
    monkeypatch.setattr(pytorch, "block_numbers", lambda device: 60)
    blocks = outputs_and_gradients(lambda c, log_z: vandermonde(c, log_z, L), (c, log_z))
    for ours, wanted in zip(blocks, whole):
        assert_close(ours, wanted, relative=1e-12)
    assert_close(vandermonde(c, log_z, L), whole[0], relative=1e-12)


@given(L=lengths, shorter=st.integers(1, 129))
def test_a_shorter_kernel_is_the_start_of_a_longer_one(L, shorter):
    c, log_z = torch.randn(2, 3, dtype=torch.complex128), random_modes(2, 3)
    shorter = min(L, shorter)
    assert_close(vandermonde(c, log_z, shorter), vandermonde(c, log_z, L)[:, :shorter], relative=1e-12)


@pytest.mark.parametrize(("of_c", "of_modes"), [((4,), (4,)), ((2, 3, 4), (3, 4)), ((3, 4), (2, 3, 4)), ((4,), (2, 4))])
def test_leading_axes_broadcast(of_c, of_modes):
    c, log_z = torch.randn(of_c, dtype=torch.complex128), random_modes(*of_modes)
    assert_same_op(
        lambda c, log_z: vandermonde(c, log_z, 9), lambda c, log_z: reference.vandermonde(c, log_z, 9), (c, log_z)
    )


@BOTH
def test_extreme_modes_stay_finite(op):
    log_z = torch.tensor([[-1e4 + 1j, 0j, -0.1 + 1e5j, -200.0 + 0j]], dtype=torch.complex64)
    c = torch.ones(1, 4, dtype=torch.complex64)
    for tensor in outputs_and_gradients(lambda c, log_z: op(c, log_z, 100), (c, log_z)):
        assert torch.isfinite(tensor.abs()).all()
    assert op(c, log_z, 1).item() == 8


def test_the_result_is_real_of_the_width_of_the_coefficients():
    c, log_z = torch.randn(2, 3, dtype=torch.complex64), random_modes(2, 3, dtype=torch.complex64)
    assert vandermonde(c, log_z, 5).dtype == torch.float32
    assert vandermonde(c.to(torch.complex128), log_z, 5).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"c": torch.randn(2, 3)}, TypeError, "c is float32"),
        ({"log_z": torch.randn(2, 3)}, TypeError, "log_z is float32"),
        ({"c": None}, TypeError, "c is None"),
        ({"log_z": [1.0]}, TypeError, "log_z is of type list"),
        ({"log_z": random_modes(2, 4)}, ValueError, r"log_z has shape \[2, 4\]; expected .* with N = 3"),
        ({"log_z": random_modes(5, 3)}, ValueError, r"axes \[2\]; expected .* \[5\] of log_z"),
        (
            {"c": random_modes(2, 0), "log_z": random_modes(2, 0)},
            ValueError,
            "c has shape .*; expected no axis of size 0",
        ),
        ({"L": 0}, ValueError, "L is 0"),
        ({"L": 4.0}, TypeError, "L is 4.0"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    good = {"c": random_modes(2, 3), "log_z": random_modes(2, 3), "L": 4}
    with pytest.raises(error, match=message):
        vandermonde(**good | change)
