"""gated_scan: against numbers worked out from its equation, its definition and itself."""

import itertools
from fractions import Fraction

import pytest
import torch
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from sequences import assert_op_within_budget, assert_same_op, cotangent_layouts, lengths, outputs_and_gradients

from firebolt_vl.kernels import gated_scan, reference
from firebolt_vl.kernels.gated_scan import pytorch

BOTH = pytest.mark.parametrize("op", [gated_scan, reference.gated_scan], ids=["public", "reference"])
WIDE = torch.float64
borders_of_40 = st.lists(st.integers(0, 40), max_size=4).map(lambda inside: [0, *sorted(inside), 40])


def inputs(B=2, T=9, D=3, dtype=WIDE):
    """a, b and the initial state."""
    return [torch.rand(B, T, D, dtype=dtype), torch.randn(B, T, D, dtype=dtype), torch.randn(B, D, dtype=dtype)]


@BOTH
def test_the_numbers_are_those_of_the_equation(op):
    """h_t as the sum over s of b_s times all gates after s, in whole fractions, and its derivatives by hand."""
    a = [Fraction(n, 8) for n in (7, -3, 0, 5, 8)]
    b = [Fraction(n, 4) for n in (3, -1, 2, 7, -5)]
    start = Fraction(3, 2)

    def between(first, last):
        product = Fraction(1)
        for gate in a[first : last + 1]:
            product *= gate
        return product

    states = [between(0, t) * start + sum(between(s + 1, t) * b[s] for s in range(t + 1)) for t in range(5)]
    # The loss is the sum of t + 1 times h_t: by b_s it is the sum over t >= s of t + 1 times the gates after s.
    of_b = [sum((t + 1) * between(s + 1, t) for t in range(s, 5)) for s in range(5)]
    of_a = [of * h for of, h in zip(of_b, [start, *states])]
    leaves = [
        torch.tensor(x, dtype=WIDE).reshape(shape).requires_grad_()
        for x, shape in (
            ([float(x) for x in a], (1, 5, 1)),
            ([float(x) for x in b], (1, 5, 1)),
            ([float(start)], (1, 1)),
        )
    ]
    h, last = op(*leaves)
    assert h.flatten().tolist() == [float(x) for x in states]
    assert last.item() == float(states[-1])
    found = torch.autograd.grad((h.flatten() * torch.arange(1, 6, dtype=WIDE)).sum(), leaves)
    assert found[0].flatten().tolist() == [float(x) for x in of_a]
    assert found[1].flatten().tolist() == [float(x) for x in of_b]
    assert found[2].item() == float(a[0] * of_b[0])


@given(
    data=st.data(),
    B=st.integers(1, 3),
    T=lengths,
    D=st.integers(1, 4),
    state=st.booleans(),
    numbers=st.sampled_from([0, 10**6]),
    cotangent_layout=cotangent_layouts,
)
def test_value_and_gradients_are_the_references(data, B, T, D, state, numbers, cotangent_layout):
    """Also where time is divided into pieces, or is not."""
    a, b = (data.draw(layouts(B, T, D)) for _ in range(2))
    arguments = [a.tanh(), b, data.draw(layouts(B, D))] if state else [a.tanh(), b]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "MOST_NUMBERS", numbers)
        patch.setattr(pytorch, "FEWEST_STEPS", 2)
        assert_same_op(gated_scan, reference.gated_scan, arguments, cotangent_layout)


@BOTH
@pytest.mark.parametrize("T", [1, 4, 70])
def test_gradcheck(op, T):
    tensors = [tensor.requires_grad_() for tensor in inputs(B=1, T=T, D=2)]
    assert torch.autograd.gradcheck(op, tensors)


@pytest.mark.parametrize("T", [1, 33, 500])
@pytest.mark.parametrize("least", [0.0, 0.999])
def test_float32_error_is_within_the_budget(T, least):
    a, b, h = inputs(D=40, T=T, dtype=torch.float32)
    assert_op_within_budget(gated_scan, reference.gated_scan, [least + (1 - least) * a, b, h])


@BOTH
@given(cuts=st.lists(st.integers(0, 60), max_size=4))
def test_pieces_that_hand_on_their_state_are_the_whole(op, cuts):
    a, b, h = inputs(T=60)
    whole, last = op(a, b, h)
    parts = []
    for first, end in itertools.pairwise(sorted({0, 60, *cuts})):
        part, h = op(a[:, first:end], b[:, first:end], h)
        parts.append(part)
    assert_close(torch.cat(parts, 1), whole, relative=1e-12)
    assert_close(h, last, relative=1e-12)


@BOTH
@given(T=lengths, s=st.floats(-3, 3), t=st.floats(-3, 3))
def test_it_is_linear_in_inputs_and_initial_state_together(op, T, s, t):
    (a, b, h), (_, other_b, other_h) = inputs(T=T), inputs(T=T)
    mixed, one, two = (op(a, *x) for x in ((s * b + t * other_b, s * h + t * other_h), (b, h), (other_b, other_h)))
    for whole, first, second in zip(mixed, one, two):
        assert_close(whole, s * first + t * second, relative=1e-10, absolute=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@given(data=st.data(), T=lengths)
def test_a_later_input_changes_no_bit_of_an_earlier_output(dtype, data, T):
    a, b, h = (tensor.to(dtype) for tensor in inputs(T=T))
    t = data.draw(st.integers(0, T - 1))
    changed = [a.clone(), b.clone()]
    for tensor in changed:
        tensor[:, t:] = float("nan")
    assert torch.equal(gated_scan(*changed, h)[0][:, :t], gated_scan(a, b, h)[0][:, :t])


@BOTH
@given(borders=borders_of_40, state=st.booleans(), dtype=st.sampled_from([torch.int32, torch.int64]))
def test_packed_texts_are_those_alone(op, borders, state, dtype):
    """Value, last state and every gradient; an empty text hands on its state."""
    a, b, _ = inputs(B=1, T=40)
    h = torch.randn(len(borders) - 1, 3, dtype=WIDE)

    def packed(a, b, *h):
        return op(a, b, *h, cu_seqlens=torch.tensor(borders, dtype=dtype))

    def alone(a, b, *h):
        outputs, states = [], []
        for text, (first, end) in enumerate(itertools.pairwise(borders)):
            last = h[0][text : text + 1] if h else torch.zeros(1, 3, dtype=WIDE)
            if end > first:
                states_of_text, last = reference.gated_scan(a[:, first:end], b[:, first:end], last)
                outputs.append(states_of_text)
            states.append(last)
        return torch.cat(outputs, 1), torch.cat(states)

    assert_same_op(packed, alone, [a, b, h] if state else [a, b])


@BOTH
def test_a_gate_of_1_keeps_and_of_0_forgets(op):
    _, b, h = inputs(T=70)
    kept, last = op(torch.ones_like(b), torch.zeros_like(b), h)
    assert torch.equal(kept, h.unsqueeze(1).expand_as(b))
    assert torch.equal(last, h)
    assert torch.equal(op(torch.zeros_like(b), b, h)[0], b)


@pytest.mark.parametrize("numbers", [0, 10**6])
def test_gates_above_1_grow_nothing_of_nothing(numbers, monkeypatch):
    """The product of a piece's gates is infinite there."""
    monkeypatch.setattr(pytorch, "MOST_NUMBERS", numbers)
    b = torch.zeros(1, 300, 2)
    b[:, -3:] = 1
    h, last = gated_scan(torch.full_like(b, 1e4), b)
    assert torch.equal(h, reference.gated_scan(torch.full_like(b, 1e4), b)[0])
    assert torch.isfinite(last).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T", [1, 40])
def test_half_inputs_are_computed_in_float32(dtype, T):
    a, b, h = inputs(T=T, dtype=torch.float32)
    b, h = b.to(dtype), h.to(dtype)
    states, last = gated_scan(a, b, h)
    assert (states.dtype, last.dtype) == (dtype, torch.float32)
    wanted, wanted_last = gated_scan(a, b.float(), h.float())
    assert torch.equal(states, wanted.to(dtype))
    assert torch.equal(last, wanted_last)


def test_gates_near_1_in_float32_remember_beside_inputs_in_bfloat16():
    """In bfloat16 the gate 0.999 is 1, and nothing would ever be forgotten."""
    a, b = torch.full((1, 3000, 1), 0.999), torch.zeros(1, 3000, 1, dtype=torch.bfloat16)
    _, last = gated_scan(a, b, torch.ones(1, 1))
    assert last.item() == pytest.approx(a[0, 0, 0].double().item() ** 3000, rel=1e-4)
    _, kept = gated_scan(a.bfloat16(), b, torch.ones(1, 1))
    assert kept.item() == 1


def test_gradients_of_one_output_alone():
    for number in (0, 1):
        leaves = [tensor.requires_grad_() for tensor in inputs(T=20)]
        found, wanted = (
            torch.autograd.grad(op(*leaves)[number].cos().sum(), leaves) for op in (gated_scan, reference.gated_scan)
        )
        for ours, theirs in zip(found, wanted):
            assert_close(ours, theirs)


def test_gradients_are_finite_where_gates_are_0():
    a, b, h = inputs(T=40)
    assert all(torch.isfinite(x).all() for x in outputs_and_gradients(gated_scan, [torch.zeros_like(a), b, h]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": torch.randn(9, 3)}, ValueError, r"gated_scan: a has shape \[9, 3\]; expected \[B T D\]"),
        ({"b": torch.randn(2, 8, 3)}, ValueError, r"b has shape \[2, 8, 3\]; expected .* T = 9"),
        ({"a": torch.randn(2, 0, 3), "b": torch.randn(2, 0, 3)}, ValueError, "expected no axis of size 0"),
        ({"a": None}, TypeError, "a is None"),
        ({"b": None}, TypeError, "b is None"),
        ({"b": torch.ones(2, 9, 3, dtype=torch.int64)}, TypeError, "b is int64"),
        ({"a": torch.ones(2, 9, 3, dtype=torch.cfloat)}, TypeError, "a is complex64"),
        ({"initial_state": torch.randn(3, 3)}, ValueError, r"initial_state has shape \[3, 3\]; expected \[B D\]"),
        ({"initial_state": torch.ones(2, 3, dtype=torch.bool)}, TypeError, "initial_state is bool"),
        ({"cu_seqlens": torch.tensor([0, 9])}, ValueError, "a has 2 rows; expected one, since cu_seqlens packs"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        gated_scan(**{"a": torch.rand(2, 9, 3), "b": torch.randn(2, 9, 3)} | change)


@pytest.mark.parametrize("borders", [[0, 5], [1, 9], [0, 7, 5, 9]])
def test_borders_rise_from_0_to_the_end(borders):
    a = torch.rand(1, 9, 3)
    with pytest.raises(ValueError, match="expected borders that rise from 0 to L = 9"):
        gated_scan(a, a, cu_seqlens=torch.tensor(borders))
    with pytest.raises(ValueError, match=r"initial_state has shape \[1, 3\]; expected \[2 D\] with D = 3"):
        gated_scan(a, a, torch.zeros(1, 3), cu_seqlens=torch.tensor([0, 5, 9]))
