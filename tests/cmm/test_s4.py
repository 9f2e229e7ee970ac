"""S4: the kernel of its diagonal-plus-rank-one model, its three modes, and the original's parameters."""

import copy
import math

import pytest
import torch
from golden import case_names, load
from numerics import assert_close, assert_within_budget, relative_error

from firebolt_vl.bench.timing import Run, peak_bytes
from firebolt_vl.cmm import S4, S4D, dplr
from firebolt_vl.cmm.dplr import CHUNK, chunked, discretise, kernel, readout, unfold
from firebolt_vl.cmm.s4 import S4Kernel
from firebolt_vl.kernels import cauchy

CASES = case_names("s4_nplr_kernel")
STEP_CASES = [name for name in CASES if "rate" not in name]
BLOCK_CASES = [name for name in case_names("ssm_blocks") if name.startswith("s4_")]


def details(case):
    return next(entry for entry in load("s4_nplr_kernel").cases if entry["case"] == case)


def leaves(case, dtype=torch.float64):
    parameters = load("s4_nplr_kernel").under(f"{case}.param")
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in parameters.items()}


def model(parameters, rate=1.0):
    """The original's parameters -> (one time step, its folded C)."""
    w = torch.complex(-parameters["A_real"].exp(), -parameters["A_imag"])
    P, B, C = (torch.view_as_complex(parameters[name][0]) for name in ("P", "B", "C"))
    return discretise(w, P, B, parameters["inv_dt"][:, 0].exp() * rate), C


def raw_model(case, parameters):
    """As `model`, C unfolded: a function of the folded one, which the golden gradients hold fixed."""
    rate = details(case)["rate"]
    step, folded = model(parameters, rate)
    return step, unfold(folded, step, round(details(case)["l_kernel"] / rate))


@pytest.mark.parametrize("case", CASES)
def test_kernel_and_its_gradients_are_the_original_s(case):
    vectors, parameters = load("s4_nplr_kernel"), leaves(case)
    K = kernel(*raw_model(case, parameters), details(case)["L"])
    assert_close(K, vectors[f"{case}.out.K"], 1e-9)
    (K * vectors[f"{case}.in.cotangent"]).sum().backward()
    for name, parameter in parameters.items():
        assert_close(parameter.grad, vectors[f"{case}.grad.{name}"], 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_float32_kernel_is_no_further_off_than_the_original_s(case):
    vectors, entry, parameters = load("s4_nplr_kernel"), details(case), leaves(case)
    block = S4Kernel(entry["H"], entry["N"], 1e-3, 1e-1)
    with torch.no_grad():
        block.log_dt.copy_(parameters["inv_dt"][:, 0] + math.log(entry["rate"]))
        block.log_A_real.copy_(parameters["A_real"])
        block.A_imag.copy_(-parameters["A_imag"])
        block.P.copy_(parameters["P"][0])
        block.B.copy_(parameters["B"][0])
        block.C.copy_(torch.view_as_real(raw_model(case, parameters)[1]))
        K = block.taps(entry["L"])
    assert K.dtype == torch.float32
    assert_within_budget(K, vectors[f"{case}.f32.out.K"], vectors[f"{case}.out.K"], ratio=1.0)


@pytest.mark.parametrize("case", [name for name in STEP_CASES if details(name)["l_kernel"] % 2 == 0])
def test_kernel_is_the_inverse_transform_of_its_generating_function(case):
    """The original's derivation, with the Nyquist point, where z is infinite, taken as its limit."""
    parameters, length = leaves(case), details(case)["l_kernel"]
    with torch.no_grad():
        w = torch.complex(-parameters["A_real"].exp(), -parameters["A_imag"])
        P, B, C = (torch.view_as_complex(parameters[name][0]) for name in ("P", "B", "C"))
        dt = parameters["inv_dt"].exp()
        angles = 2 * math.pi * torch.arange(length // 2, dtype=torch.float64) / length
        omega = torch.polar(torch.ones_like(angles), -angles)
        numerators = dt * torch.stack([B * C, B * P.conj(), P * C, P * P.conj()])
        r00, r01, r10, r11 = cauchy(numerators, 2 * (1 - omega) / (1 + omega), w * dt)
        spectrum = (r00 - r01 * r10 / (1 + r11)) * 2 / (1 + omega)
        nyquist = numerators[0].sum(-1, keepdim=True).real
        K = torch.fft.irfft(torch.cat([spectrum, nyquist.to(spectrum.dtype)], -1), n=length)
        assert_close(K, kernel(*raw_model(case, parameters), length), 1e-9)


def full(half):
    return torch.cat([half, half.conj()], -1)


@pytest.mark.parametrize("case", STEP_CASES)
def test_step_matrices_are_the_original_s(case):
    vectors = load("s4_nplr_kernel")
    with torch.no_grad():
        step, C = raw_model(case, leaves(case))
    dA = torch.diag_embed(full(step.diagonal)) - full(step.g).unsqueeze(-1) * full(step.h).unsqueeze(-2)
    assert_close(dA, vectors[f"{case}.step.dA"])
    assert_close(full(step.dB), vectors[f"{case}.step.dB"])
    assert_close(full(C), vectors[f"{case}.step.dC"][0])


@pytest.mark.parametrize("case", STEP_CASES)
def test_recurrence_reproduces_the_original_s_output_and_last_state(case):
    vectors = load("s4_nplr_kernel")
    with torch.no_grad():
        step, C = raw_model(case, leaves(case))
        u, s, outputs = vectors[f"{case}.in.u"], 0, []
        for u_t in u.unbind(-1):
            s = step.advance(s if torch.is_tensor(s) else torch.zeros_like(step.dB)) + step.dB * u_t.unsqueeze(-1)
            outputs.append(2 * (C * s).real.sum(-1))
        y = torch.stack(outputs, -1)
    assert_close(y, vectors[f"{case}.out.y_recurrent"])
    assert_close(y, vectors[f"{case}.out.y_conv"])
    assert_close(full(s), vectors[f"{case}.out.last_state"])


@pytest.mark.parametrize("case", STEP_CASES)
def test_the_dense_matrix_and_a_chunk_are_those_of_the_step(case):
    with torch.no_grad():
        step, C = raw_model(case, leaves(case))
        s = torch.randn_like(step.dB)
        dense = step.matrix() @ torch.view_as_real(s).flatten(-2).unsqueeze(-1)
        assert_close(dense.squeeze(-1), torch.view_as_real(step.advance(s)).flatten(-2))
        chunk, A = chunked(step, C, 8), step.matrix()
        assert_close(chunk.power, torch.linalg.matrix_power(A, 8).mT)
        assert_close(chunk.inputs[:, 7], torch.view_as_real(step.dB).flatten(-2))
        assert_close(chunk.inputs[:, 4:5], chunk.inputs[:, 7:] @ torch.linalg.matrix_power(A, 3).mT)
        assert_close(chunk.outputs[..., 4:5].mT, readout(C) @ torch.linalg.matrix_power(A, 5))


def original_block(case):
    return load("ssm_blocks").under(f"{case}.param")


@pytest.mark.parametrize("case", BLOCK_CASES)
def test_block_with_the_original_s_parameters_gives_its_output_and_gradients(case):
    vectors = load("ssm_blocks")
    entry = next(entry for entry in vectors.cases if entry["case"] == case)
    block = S4(entry["H"], entry["d_state"], kernel_taps=entry["l_max"]).double().eval()
    original = original_block(case)
    leaf = {name: tensor.requires_grad_() for name, tensor in original.items() if tensor.is_floating_point()}
    ours = S4.original_parameters({**original, **leaf})
    x = vectors[f"{case}.in.x"].requires_grad_()
    y = torch.func.functional_call(block, ours, (x.mT,)).mT
    assert_close(y, vectors[f"{case}.out.y"])
    (y * vectors[f"{case}.in.cotangent"]).sum().backward()
    assert_close(x.grad, vectors[f"{case}.grad.x"])
    for name, parameter in leaf.items():
        assert_close(parameter.grad, vectors[f"{case}.grad.param.{name}"])


def load_original(case, **options):
    ours = S4.original_parameters(original_block(case))
    block = S4(ours["kernel.D"].shape[0], 2 * ours["kernel.C"].shape[1], **options).double().eval()
    block.load_state_dict(ours)
    return block


@pytest.mark.parametrize("case", BLOCK_CASES)
def test_taps_of_a_loaded_block_are_the_original_s(case):
    K = load("ssm_blocks")[f"{case}.mid.K"]
    with torch.no_grad():
        assert_close(load_original(case).kernel.taps(K.shape[-1]), K)


def test_unfolded_c_is_the_one_before_the_original_s_first_call():
    original = original_block("s4_T10")
    before = load("ssm_blocks")["s4_T10.param_before_first_forward.layer.kernel.C"]
    assert_close(S4.original_parameters(original)["kernel.C"], before[0])
    raw = {**original, "layer.kernel.C": before, "layer.kernel.l_kernel": torch.tensor(0)}
    assert torch.equal(S4.original_parameters(raw)["kernel.C"], before[0])


def test_original_parameters_keep_their_dtype_and_name_what_is_missing():
    original = original_block("s4_T10")
    single = {name: t.float() if t.is_floating_point() else t for name, t in original.items()}
    assert {tensor.dtype for tensor in S4.original_parameters(single).values()} == {torch.float32}
    del original["layer.kernel.l_kernel"]
    with pytest.raises(ValueError, match=r"layer\.kernel\.l_kernel is missing"):
        S4.original_parameters(original)


@pytest.mark.parametrize("T", [50, 3])
def test_a_truncated_block_does_not_see_past_its_taps_in_any_mode(T):
    torch.manual_seed(1)
    block = S4(3, 8, kernel_taps=5).double().eval()
    x = torch.randn(2, T, 3, dtype=torch.float64)
    other = x.clone()
    other[:, 0] += 1
    with torch.no_grad():
        y, state = block.prefill(x)
        y_other, state_other = block.prefill(other)
        assert_close(y[:, 5:], y_other[:, 5:], 1e-13) if T > 5 else None
        assert relative_error(y[:, :5], y_other[:, :5]) > 1e-2
        assert torch.equal(state.tensors["inputs"], state_other.tensors["inputs"]) == (T > 4)
        assert state.tensors["inputs"].shape == (2, 4, 3)


def test_truncation_longer_than_the_text_changes_nothing():
    torch.manual_seed(1)
    block = S4(3, 8).double().eval()
    truncated = S4(3, 8, kernel_taps=40).double().eval()
    truncated.load_state_dict(block.state_dict())
    x = torch.randn(2, 30, 3, dtype=torch.float64)
    assert_close(truncated(x), block(x))
    assert not torch.equal(truncated(torch.cat([x, x], 1)), block(torch.cat([x, x], 1)))


@pytest.mark.parametrize("T", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_the_state_of_a_prompt_is_the_state_after_its_steps(T):
    torch.manual_seed(1)
    block = S4(3).double().eval()
    x = torch.randn(2, T, 3, dtype=torch.float64)
    with torch.no_grad():
        _, state = block.prefill(x)
        stepped = block.initial_state(2)
        for t in range(T):
            _, stepped = block.step(x[:, t], stepped)
    assert_close(state.tensors["modes"], stepped.tensors["modes"], 1e-10)


def test_rows_of_any_length_continue_a_state_as_by_steps():
    torch.manual_seed(1)
    block = S4(3, 8).double().eval()
    lengths = torch.tensor([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 3])
    time = int(lengths.max())
    mask = torch.arange(time) < lengths[:, None]
    x = torch.randn(len(lengths), time, 3, dtype=torch.float64)
    with torch.no_grad():
        _, before = block.prefill(torch.randn(len(lengths), 10, 3, dtype=torch.float64))
        y, state = block.prefill(x, mask, before)
        for row, length in enumerate(lengths):
            stepped = before.index_select(torch.tensor([row]))
            for t in range(length):
                y_t, stepped = block.step(x[row : row + 1, t], stepped)
                assert_close(y[row : row + 1, t], y_t, 1e-10)
            assert_close(state.tensors["modes"][row], stepped.tensors["modes"][0], 1e-10)


def test_float32_state_and_output_after_a_thousand_steps_stay_within_budget():
    torch.manual_seed(1)
    block = S4(16).eval()
    wide = copy.deepcopy(block).double()
    x = torch.randn(1, 1000, 16)
    with torch.no_grad():
        exact = wide(x.double())
        state, outputs = block.initial_state(1), []
        for t in range(x.shape[1]):
            y, state = block.step(x[:, t], state)
            outputs.append(y)
        assert relative_error(torch.stack(outputs, 1), exact) < 2e-5
        assert relative_error(block(x), exact) < 2e-5


def test_initialisation_is_legs_with_time_steps_in_range():
    torch.manual_seed(1)
    block = S4(200, dt_min=1e-2, dt_max=2e-2)
    parameters = block.kernel
    assert parameters.A_imag.shape == (200, 32)
    vectors = load("hippo_nplr").under("legs_n64.f64")
    assert_close(-parameters.log_A_real.exp()[7], vectors["w"].real.float(), 1e-6)
    assert_close(parameters.A_imag[7], vectors["w"].imag.float(), 1e-6)
    P, B = (torch.view_as_complex(parameter.detach())[7] for parameter in (parameters.P, parameters.B))
    assert_close(P.abs(), vectors["P"][0].abs().float(), 1e-6)
    assert_close(B.real.abs(), vectors["B_noclip"].real.abs().float(), 1e-5)
    assert B.imag.abs().max() == 2
    dt = parameters.log_dt.exp()
    assert 1e-2 <= dt.min() < 1.1e-2 < 1.9e-2 < dt.max() <= 2e-2
    assert 0.8 < torch.view_as_complex(parameters.C.detach()).abs().square().mean() < 1.2


def test_wrong_sizes_are_refused_by_name():
    for options, name in (
        ({"state_size": 7}, "state_size"),
        ({"kernel_taps": 0}, "kernel_taps"),
        ({"dropout": 1}, "dropout"),
    ):
        with pytest.raises(ValueError, match=name):
            S4(4, **options)
    with pytest.raises(ValueError, match="width"):
        S4(0)


def test_kernel_of_one_tap_and_of_every_short_length_is_a_prefix():
    block = S4(3, 8).double()
    parameters: S4Kernel = block.kernel
    longest = parameters.taps(40)
    for length in range(1, 40):
        assert_close(parameters.taps(length), longest[:, :length], 1e-12)
        with torch.no_grad():
            assert_close(parameters.taps(length), longest[:, :length], 1e-12)


@pytest.mark.parametrize("length", [1, 5, 40, 300])
def test_a_kernel_by_blocks_of_channels_is_the_whole_with_its_gradients(length, monkeypatch):
    block = S4(7, 8).double()

    def results():
        K = block.kernel.taps(length)
        return [
            K,
            *torch.autograd.grad(K.square().sum(), [p for p in block.kernel.parameters() if p is not block.kernel.D]),
        ]

    whole = results()
    monkeypatch.setattr(dplr, "FEW", 2)
    monkeypatch.setattr(dplr, "block_numbers", lambda device: 2)
    for ours, wanted in zip(results(), whole):
        assert_close(ours, wanted, 1e-12)
    with torch.no_grad():
        assert_close(block.kernel.taps(length), whole[0], 1e-12)


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("model", [S4, S4D])
def test_generating_a_long_kernel_holds_at_most_three_times_its_size(model, with_gradients):
    length, kernel = 2048, model(1024, 64).kernel
    with torch.set_grad_enabled(with_gradients):
        peak = peak_bytes(Run(lambda _: kernel.taps(length)), "cpu")
    assert peak <= 3 * 4 * 1024 * length
