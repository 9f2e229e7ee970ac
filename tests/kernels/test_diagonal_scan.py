"""diagonal_scan: a linear recurrence with diagonal complex modes."""

import itertools

import golden
import pytest
import torch
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close, largest
from sequences import (
    assert_op_within_budget,
    assert_same_op,
    cotangent_layouts,
    few_lengths,
    lengths,
    outputs_and_gradients,
    random_modes,
)

from firebolt_vl.kernels import diagonal_scan, fft_conv, reference, vandermonde
from firebolt_vl.kernels.diagonal_scan import pytorch

BOTH = pytest.mark.parametrize("op", [diagonal_scan, reference.diagonal_scan], ids=["public", "reference"])
STATE_SPACES = [case for case in golden.case_names("s4d_kernel") if case.startswith("ss")]


def inputs(B=2, D=3, N=4, L=9, dtype=torch.float64):
    """u, z, b, c, d_skip, h0."""
    wide = dtype.to_complex()
    b, c = torch.randn(D, N, dtype=wide), torch.randn(D, N, dtype=wide)
    u, d_skip, h0 = torch.randn(B, D, L, dtype=dtype), torch.randn(D, dtype=dtype), torch.randn(B, D, N, dtype=wide)
    return u, torch.exp(random_modes(D, N)).to(wide), b, c, d_skip, h0


@BOTH
@pytest.mark.parametrize("case", STATE_SPACES)
def test_outputs_and_last_states_are_the_originals(op, case):
    vectors = golden.load("s4d_kernel")
    z, b, c = (vectors[f"{case}.step.{name}"] for name in ("dA", "dB", "dC"))
    u, h0 = vectors[f"{case}.in.u"], vectors[f"{case}.in.state0"]
    y, last = op(u, z, b, c.squeeze(0))
    assert_close(y, vectors[f"{case}.out.y_recurrent"])
    assert_close(last, vectors[f"{case}.out.last_state"])
    from_state, _ = op(torch.zeros_like(u), z, b, c.squeeze(0), h0=h0)
    assert_close(from_state, vectors[f"{case}.out.K_state"])


@given(
    data=st.data(),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    L=lengths,
    chunk=st.sampled_from([1, 3, 16, 32]),
    by_steps=st.booleans(),
    block=st.sampled_from([1, 2**9, 2**17]),
    skip=st.booleans(),
    state=st.booleans(),
    cotangent_layout=cotangent_layouts,
)
def test_value_and_gradients_are_the_references(data, sizes, L, chunk, by_steps, block, skip, state, cotangent_layout):
    B, D, N = sizes
    u, d_skip = data.draw(layouts(B, D, L)), data.draw(layouts(D)) if skip else None
    z, b, c = (data.draw(layouts(D, N, dtype=torch.complex128)) for _ in range(3))
    z = z / (1 + z.abs())
    h0 = data.draw(layouts(B, D, N, dtype=torch.complex128)) if state else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "CHUNK", chunk if L // chunk < 40 else 32)
        patch.setattr(pytorch, "steps_are_faster", lambda h, L: by_steps)
        patch.setattr(pytorch, "block_numbers", lambda device: block)
        assert_same_op(diagonal_scan, reference.diagonal_scan, (u, z, b, c, d_skip, h0), cotangent_layout)


@BOTH
@pytest.mark.parametrize("L", [1, 5])
def test_gradcheck(op, L):
    assert torch.autograd.gradcheck(op, [tensor.requires_grad_() for tensor in inputs(D=2, N=2, L=L)])


def test_gradcheck_by_chunks(monkeypatch):
    monkeypatch.setattr(pytorch, "steps_are_faster", lambda h, L: False)
    monkeypatch.setattr(pytorch, "CHUNK", 3)
    arguments = [tensor.requires_grad_() for tensor in inputs(B=1, D=1, N=2, L=8)]
    assert torch.autograd.gradcheck(diagonal_scan, arguments)
    assert torch.autograd.gradgradcheck(diagonal_scan, arguments)


@pytest.mark.parametrize("L", [1, 8, 33, 500])
def test_float32_error_is_within_the_budget(L):
    assert_op_within_budget(diagonal_scan, reference.diagonal_scan, inputs(D=16, N=16, L=L, dtype=torch.float32))


def test_slow_modes_keep_their_precision_over_many_chunks():
    """The same rounding of z^32 at every chunk would add up here to ten times the error of the definition."""
    u, _, b, c, _, _ = inputs(B=1, D=4, N=8, L=3000, dtype=torch.float32)
    z = torch.exp(torch.complex(torch.full((4, 8), -1e-4), 3 * torch.rand(4, 8)))
    assert_op_within_budget(diagonal_scan, reference.diagonal_scan, (u, z, b, c))


@BOTH
@given(cuts=st.lists(st.integers(0, 100), max_size=4), state=st.booleans())
def test_pieces_that_hand_on_their_state_are_the_whole(op, cuts, state):
    u, z, b, c, d_skip, h0 = inputs(L=100)
    y, last = op(u, z, b, c, d_skip, h0 if state else None)
    h, parts = h0 if state else None, []
    bounds = sorted({0, 100, *cuts})
    for first, end in itertools.pairwise(bounds):
        part, h = op(u[..., first:end], z, b, c, d_skip, h)
        parts.append(part)
    assert_close(torch.cat(parts, -1), y, relative=1e-12)
    assert_close(h, last, relative=1e-12)


@given(L=few_lengths)
def test_steps_are_the_whole(L):
    u, z, b, c, d_skip, h = inputs(L=L)
    y, last = diagonal_scan(u, z, b, c, d_skip, h)
    for t in range(L):
        y_t, h = diagonal_scan(u[..., t : t + 1], z, b, c, d_skip, h)
        assert_close(y_t, y[..., t : t + 1], relative=1e-12)
    assert_close(h, last, relative=1e-12)


@given(L=lengths, a=st.floats(-3, 3), s=st.floats(-3, 3))
def test_it_is_linear_in_inputs_and_initial_state_together(L, a, s):
    u, z, b, c, d_skip, h = inputs(L=L)
    v, g = torch.randn_like(u), torch.randn_like(h)
    y, last = diagonal_scan(a * u + s * v, z, b, c, d_skip, a * h + s * g)
    of_u, of_v = diagonal_scan(u, z, b, c, d_skip, h), diagonal_scan(v, z, b, c, d_skip, g)
    assert_close(y, a * of_u[0] + s * of_v[0], relative=1e-10, absolute=1e-9)
    assert_close(last, a * of_u[1] + s * of_v[1], relative=1e-10, absolute=1e-9)


@given(L=lengths)
def test_from_nothing_it_is_the_convolution_with_the_modes_kernel(L):
    u, _, b, c, d_skip, _ = inputs()
    u, log_z = torch.randn(2, 3, L).double(), random_modes(3, 4)
    y, _ = diagonal_scan(u, torch.exp(log_z), b, c, d_skip)
    assert_close(y, fft_conv(u, vandermonde(c * b, log_z, L), d_skip), relative=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@given(data=st.data(), L=lengths)
def test_a_later_input_changes_no_bit_of_an_earlier_output(dtype, data, L):
    u, z, b, c, d_skip, h0 = inputs(L=L, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    u = u.to(dtype)
    t = data.draw(st.integers(0, L - 1))
    changed = u.clone()
    changed[..., t:] = 100
    before, after = (diagonal_scan(x, z, b, c, d_skip, h0)[0][..., :t] for x in (u, changed))
    assert torch.equal(before, after)


def test_the_given_state_is_not_changed():
    for L in (1, 70):
        *arguments, h0 = inputs(L=L)
        copy = h0.clone()
        diagonal_scan(*arguments, h0)
        assert torch.equal(h0, copy)


@BOTH
def test_modes_that_are_zero_forget_at_once(op):
    u, z, b, c, d_skip, h0 = inputs(L=50)
    arguments = (u, torch.zeros_like(z), b, c, d_skip, h0)
    y, last = op(*arguments)
    assert_close(y, (2 * (b * c).sum(-1).real + d_skip)[:, None] * u, relative=1e-12)
    assert_close(last, b * u[..., -1:], relative=1e-12)
    assert all(torch.isfinite(tensor.abs()).all() for tensor in outputs_and_gradients(op, arguments))


@BOTH
@given(data=st.data(), L=lengths, state=st.booleans(), dtype=st.sampled_from([torch.int32, torch.int64]))
def test_packed_texts_give_what_each_gives_alone(op, data, L, state, dtype):
    cuts = data.draw(st.lists(st.integers(0, L), max_size=4))  # repeated ones, and those at an end, make empty texts
    borders = torch.tensor([0, *sorted(cuts), L], dtype=dtype)
    u, z, b, c, d_skip, _ = inputs(B=1, L=L)
    h0 = torch.randn(len(cuts) + 1, 3, 4, dtype=torch.complex128) if state else None
    arguments = (u, z, b, c, d_skip, h0)

    def packed(*arguments):
        return op(*arguments, cu_seqlens=borders)

    def separate(u, z, b, c, d_skip, h0):
        outputs, states = [], []
        for text, (first, end) in enumerate(itertools.pairwise(borders.tolist())):
            before = torch.zeros(1, 3, 4, dtype=z.dtype) if h0 is None else h0[text : text + 1]
            y, after = op(u[..., first:end], z, b, c, d_skip, before) if first < end else (u[..., :0], before)
            outputs.append(y)
            states.append(after)
        return torch.cat(outputs, -1), torch.cat(states)

    assert_same_op(packed, separate, arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 5])}, ValueError, r"cu_seqlens is \[0, 5\]; expected borders"),
        ({"cu_seqlens": torch.tensor([0.0, 8.0])}, TypeError, "cu_seqlens is float32"),
        ({"u": torch.randn(2, 3, 8)}, ValueError, "u has 2 rows; expected one"),
        ({"h0": random_modes(1, 3, 4)}, ValueError, r"h0 has shape \[1, 3, 4\]; expected \[2 D N\]"),
    ],
)
def test_bad_packing_is_named(change, error, message):
    good = {"u": torch.randn(1, 3, 8), "z": random_modes(3, 4), "b": random_modes(3, 4), "c": random_modes(3, 4)}
    with pytest.raises(error, match=message):
        diagonal_scan(**good | {"cu_seqlens": torch.tensor([0, 3, 8])} | change)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("L", [1, 70])
def test_half_inputs_are_computed_in_float32(dtype, L):
    u, z, b, c, d_skip, h0 = inputs(L=L, dtype=torch.float32)
    u = u.to(dtype)
    y, last = diagonal_scan(u, z, b, c, d_skip, h0)
    assert (y.dtype, last.dtype) == (dtype, torch.complex64)
    wanted, wanted_last = diagonal_scan(u.float(), z, b, c, d_skip, h0)
    assert torch.equal(y, wanted.to(dtype))
    assert torch.equal(last, wanted_last)


def test_no_gradient_is_lost_when_only_the_last_state_is_used():
    arguments = [tensor.requires_grad_() for tensor in inputs(L=70)]
    diagonal_scan(*arguments)[1].abs().sum().backward()
    u, z, b, c, _, h0 = arguments
    assert all(largest(tensor.grad) > 0 for tensor in (u, z, b, h0))
    assert c.grad is None or largest(c.grad) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.randn(3, 8)}, ValueError, r"u has shape \[3, 8\]; expected \[B D L\]"),
        ({"z": random_modes(4, 5)}, ValueError, r"z has shape \[4, 5\]; expected \[D N\] with D = 3"),
        ({"b": random_modes(3, 5)}, ValueError, r"b has shape \[3, 5\]; expected \[D N\] with D = 3, N = 4"),
        ({"c": random_modes(3)}, ValueError, r"c has shape \[3\]"),
        ({"h0": random_modes(1, 3, 4)}, ValueError, r"h0 has shape \[1, 3, 4\]; expected \[B D N\] with B = 2"),
        ({"d_skip": torch.randn(4)}, ValueError, r"d_skip has shape \[4\]"),
        ({"u": torch.randn(2, 3, 0)}, ValueError, "expected no axis of size 0"),
        ({"z": torch.randn(3, 4)}, TypeError, "z is float32; expected one of complex64, complex128"),
        ({"u": random_modes(2, 3, 8)}, TypeError, "u is complex128"),
        ({"h0": torch.zeros(2, 3, 4)}, TypeError, "h0 is float32"),
        ({"b": None}, TypeError, "b is None"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    good = {"u": torch.randn(2, 3, 8), "z": random_modes(3, 4), "b": random_modes(3, 4), "c": random_modes(3, 4)}
    with pytest.raises(error, match=message):
        diagonal_scan(**good | change)
