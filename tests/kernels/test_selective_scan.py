"""selective_scan: Mamba's, against the original's numbers, its definition and itself."""

import itertools
import math

import golden
import pytest
import torch
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from selective_scans import CASES, KINDS, in_order, inputs, matrix_shape
from sequences import (
    assert_op_within_budget,
    assert_same_op,
    cotangent_layouts,
    few_lengths,
    lengths,
    outputs_and_gradients,
)

from firebolt_vl.kernels import reference, selective_scan
from firebolt_vl.kernels.selective_scan import pytorch

BOTH = pytest.mark.parametrize("op", [selective_scan, reference.selective_scan], ids=["public", "reference"])


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_values_states_and_gradients_are_the_originals(name, op):
    vectors = golden.load("selective_scan")
    arguments = vectors.under(f"{name}.in")
    cotangent = arguments.pop("cotangent")
    for tensor in arguments.values():
        tensor.requires_grad_()
    y, last_state = op(**arguments, delta_softplus=CASES[name]["delta_softplus"], return_last_state=True)
    assert_close(y, vectors[f"{name}.out.y"])
    assert_close(last_state, vectors[f"{name}.out.last_state"])
    (y * cotangent).sum().backward()
    gradients = vectors.under(f"{name}.grad")
    assert gradients.keys() == arguments.keys()
    for key, wanted in gradients.items():
        assert_close(arguments[key].grad, wanted)


def both_in_order(names, **options):
    return in_order(selective_scan, names, **options), in_order(reference.selective_scan, names, **options)


@given(
    data=st.data(),
    batch=st.integers(1, 3),
    N=st.integers(1, 4),
    groups=st.sampled_from([(1, 1), (2, 2), (3, 1), (2, 4), (2, 3)]),
    repeats=st.integers(1, 2),
    L=lengths,
    kinds=st.tuples(KINDS, KINDS),
    softplus=st.booleans(),
    optional=st.sets(st.sampled_from(["D", "z", "delta_bias", "initial_state"])),
    fewest_steps=st.sampled_from([1, 5, 16]),
    cotangent_layout=cotangent_layouts,
)
def test_value_and_gradients_are_the_references(
    data, batch, N, groups, repeats, L, kinds, softplus, optional, fewest_steps, cotangent_layout
):
    D = math.lcm(*groups) * repeats
    shapes = {"u": (batch, D, L), "delta": (batch, D, L), "A": (D, N), "D": (D,), "z": (batch, D, L)}
    shapes |= {"delta_bias": (D,), "initial_state": (batch, D, N)}
    for name, kind, count in zip("BC", kinds, groups, strict=True):
        shapes[name] = matrix_shape(kind, batch, D, N, L, count)
    names = [name for name in shapes if name in {"u", "delta", "A", "B", "C"} | optional]
    arguments = {name: data.draw(layouts(*shapes[name])) for name in names}
    arguments["A"] = -arguments["A"].abs()
    if not softplus:
        arguments["delta"] = arguments["delta"].abs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch, "FEWEST_STEPS", fewest_steps)
        patch.setattr(pytorch, "block_numbers", lambda device: 1)
        ours, theirs = both_in_order(names, delta_softplus=softplus)
        assert_same_op(ours, theirs, list(arguments.values()), cotangent_layout)


@BOTH
@pytest.mark.parametrize("L", [1, 4])
@pytest.mark.parametrize(("B_kind", "C_kind"), [("shared", "constant"), ("grouped", "shared")])
def test_gradcheck(op, L, B_kind, C_kind, monkeypatch):
    monkeypatch.setattr(pytorch, "FEWEST_STEPS", 3)
    monkeypatch.setattr(pytorch, "block_numbers", lambda device: 1)
    named = inputs(batch=1, D=2, N=2, L=L, B_kind=B_kind, C_kind=C_kind)
    tensors = [tensor.requires_grad_() for tensor in named.values()]
    assert torch.autograd.gradcheck(in_order(op, named, delta_softplus=True), tensors)


@pytest.mark.parametrize("B_kind", ["constant", "shared", "grouped"])
def test_gradcheck_with_a_complex_A(B_kind):
    named = inputs(batch=1, D=2, N=2, L=3, B_kind=B_kind, is_complex=True)
    tensors = [tensor.requires_grad_() for tensor in named.values()]
    assert torch.autograd.gradcheck(in_order(selective_scan, named, delta_softplus=True), tensors)


@pytest.mark.parametrize("L", [1, 33, 200])
@pytest.mark.parametrize("kind", ["constant", "shared", "grouped"])
def test_float32_error_is_within_the_budget(L, kind):
    named = inputs(D=64, N=16, L=L, dtype=torch.float32, B_kind=kind, C_kind=kind)
    # Bounded inputs, so that the largest error is not that of one outlier.
    named = {name: tensor.clamp(-1, 1) for name, tensor in named.items()}
    assert_op_within_budget(*both_in_order(named, delta_softplus=True), list(named.values()))


@BOTH
@pytest.mark.parametrize("is_complex", [False, True])
@given(cuts=st.lists(st.integers(0, 60), max_size=4))
def test_pieces_that_hand_on_their_state_are_the_whole(op, is_complex, cuts):
    named = inputs(L=60, is_complex=is_complex)
    y, last = op(**named, delta_softplus=True, return_last_state=True)
    h, parts = named["initial_state"], []
    for first, end in itertools.pairwise(sorted({0, 60, *cuts})):
        piece = {name: named[name][..., first:end] for name in ("u", "delta", "z")}
        of_pairs = slice(2 * first, 2 * end) if is_complex else slice(first, end)
        piece |= {name: named[name][..., of_pairs] for name in ("B", "C")}
        part, h = op(**named | piece | {"initial_state": h}, delta_softplus=True, return_last_state=True)
        parts.append(part)
    assert_close(torch.cat(parts, -1), y, relative=1e-12)
    assert_close(h, last, relative=1e-12)


@given(L=few_lengths)
def test_steps_are_the_whole(L):
    named = inputs(L=L)
    y, last = selective_scan(**named, return_last_state=True)
    h = named["initial_state"]
    for t in range(L):
        now = {name: named[name][..., t : t + 1] for name in ("u", "delta", "z", "B", "C")}
        y_t, h = selective_scan(**named | now | {"initial_state": h}, return_last_state=True)
        assert_close(y_t, y[..., t : t + 1], relative=1e-12)
    assert_close(h, last, relative=1e-12)


@BOTH
@given(L=lengths, a=st.floats(-3, 3), s=st.floats(-3, 3))
def test_it_is_linear_in_inputs_and_initial_state_together(op, L, a, s):
    named = inputs(L=L)
    other = {name: torch.randn_like(named[name]) for name in ("u", "initial_state")}
    mixed = {name: a * named[name] + s * other[name] for name in other}
    y, last = op(**named | mixed, delta_softplus=True, return_last_state=True)
    one, two = (op(**named | change, delta_softplus=True, return_last_state=True) for change in ({}, other))
    assert_close(y, a * one[0] + s * two[0], relative=1e-10, absolute=1e-9)
    assert_close(last, a * one[1] + s * two[1], relative=1e-10, absolute=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@given(data=st.data(), L=lengths)
def test_a_later_input_changes_no_bit_of_an_earlier_output(dtype, data, L):
    named = {name: tensor.to(dtype) for name, tensor in inputs(L=L, dtype=torch.float64).items()}
    t = data.draw(st.integers(0, L - 1))
    changed = dict(named)
    for name in ("u", "delta", "z", "B", "C"):
        changed[name] = named[name].clone()
        changed[name][..., t:] += 1
    before, after = (selective_scan(**x, delta_softplus=True)[..., :t] for x in (named, changed))
    assert torch.equal(before, after)


def test_groups_repeat_over_neighbouring_channels():
    """Channel d takes group d // (D / groups)."""
    named = inputs(D=6, groups=3, B_kind="grouped", C_kind="grouped")
    y = selective_scan(**named)
    for d in range(6):
        alone = {name: named[name][:, d : d + 1] for name in ("u", "delta", "z", "initial_state")}
        alone |= {name: named[name][d : d + 1] for name in ("A", "D", "delta_bias")}
        alone |= {name: named[name][:, d // 2] for name in ("B", "C")}
        assert_close(selective_scan(**alone), y[:, d : d + 1], relative=1e-12)


@BOTH
@given(
    borders=st.lists(st.integers(0, 40), max_size=4).map(lambda inside: [0, *sorted(inside), 40]),
    kinds=st.tuples(KINDS, KINDS),
    is_complex=st.booleans(),
    state=st.booleans(),
)
def test_packed_texts_are_those_alone(op, borders, kinds, is_complex, state):
    """Value, last state and every gradient; an empty text hands on its state."""
    named = inputs(batch=1, L=40, B_kind=kinds[0], C_kind=kinds[1], is_complex=is_complex)
    wide = torch.complex128 if is_complex else torch.float64
    named["initial_state"] = torch.randn(len(borders) - 1, 4, 3, dtype=wide)
    if not state:
        del named["initial_state"]

    def packed(*tensors):
        return in_order(op, named, delta_softplus=True)(*tensors, cu_seqlens=torch.tensor(borders))

    def alone(*tensors):
        arguments, outputs, states = dict(zip(named, tensors)), [], []
        for text, (first, end) in enumerate(itertools.pairwise(borders)):
            h = arguments["initial_state"][text : text + 1] if state else torch.zeros(1, 4, 3, dtype=wide)
            if end > first:
                piece = {name: arguments[name][..., first:end] for name in ("u", "delta", "z")}
                for name, kind in zip("BC", kinds):
                    of_time = slice((1 + is_complex) * first, (1 + is_complex) * end)
                    piece[name] = arguments[name] if kind == "constant" else arguments[name][..., of_time]
                whole = arguments | piece | {"initial_state": h}
                y, h = reference.selective_scan(**whole, delta_softplus=True, return_last_state=True)
                outputs.append(y)
            states.append(h)
        return torch.cat(outputs, -1), torch.cat(states)

    assert_same_op(packed, alone, list(named.values()))


def test_packed_halves_have_states_in_float32():
    named = {name: x.half() for name, x in inputs(batch=1, L=9, dtype=torch.float32).items()} | {"initial_state": None}
    y, last = selective_scan(**named, return_last_state=True, cu_seqlens=torch.tensor([0, 0, 4, 9]))
    assert (y.dtype, last.dtype, last.shape) == (torch.float16, torch.float32, (3, 4, 3))


def test_without_a_step_nothing_happens():
    """delta = 0: the state stays, and what comes in does not reach it."""
    named = inputs(L=40) | {"delta": torch.zeros(2, 4, 40, dtype=torch.float64), "delta_bias": None}
    y, last = selective_scan(**named | {"z": None, "D": None}, return_last_state=True)
    assert torch.equal(last, named["initial_state"])
    assert_close(y, torch.einsum("bnl,bdn->bdl", named["C"], last), relative=1e-12)


def test_large_steps_forget_and_stay_finite():
    named = inputs(L=40, dtype=torch.float32)
    named["delta"] = torch.full_like(named["delta"], 1e4)
    run = in_order(selective_scan, named)
    assert all(torch.isfinite(tensor).all() for tensor in outputs_and_gradients(run, list(named.values())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("L", [1, 40])
def test_half_inputs_are_computed_in_float32(dtype, L):
    named = {name: tensor.to(dtype) for name, tensor in inputs(L=L, dtype=torch.float32).items()}
    y, last = selective_scan(**named, delta_softplus=True, return_last_state=True)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    wide = {name: tensor.float() for name, tensor in named.items()}
    wanted, wanted_last = selective_scan(**wide, delta_softplus=True, return_last_state=True)
    assert torch.equal(y, wanted.to(dtype))
    assert torch.equal(last, wanted_last)


def test_the_state_comes_only_when_asked_for():
    named = inputs()
    y, _ = selective_scan(**named, return_last_state=True)
    assert torch.equal(selective_scan(**named), y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.randn(4, 9)}, ValueError, r"u has shape \[4, 9\]; expected \[batch D L\]"),
        ({"delta": torch.randn(2, 4, 8)}, ValueError, r"delta has shape \[2, 4, 8\]; expected .* L = 9"),
        ({"A": torch.randn(5, 3)}, ValueError, r"A has shape \[5, 3\]; expected \[D N\] with D = 4"),
        ({"B": torch.randn(2, 9, 3)}, ValueError, r"B has shape \[2, 9, 3\]; expected \[batch N L\] with batch = 2"),
        ({"B": torch.randn(2, 3, 3, 9)}, ValueError, "B has 3 groups; expected a divisor of D = 4"),
        ({"C": torch.randn(9)}, ValueError, r"C is \[9\]; expected \[D, N\], \[batch, N, L\] or"),
        ({"C": None}, TypeError, "C is None"),
        ({"D": torch.randn(3)}, ValueError, r"D has shape \[3\]"),
        ({"z": torch.randn(2, 4, 1)}, ValueError, r"z has shape \[2, 4, 1\]"),
        ({"delta_bias": torch.randn(1, 4)}, ValueError, r"delta_bias has shape \[1, 4\]"),
        ({"initial_state": torch.randn(2, 3, 4)}, ValueError, r"initial_state has shape \[2, 3, 4\]"),
        ({"initial_state": torch.zeros(2, 4, 3, dtype=torch.cfloat)}, TypeError, "initial_state is complex64"),
        ({"A": torch.zeros(4, 3, dtype=torch.cfloat)}, ValueError, r"B has shape \[2, 3, 9\]; expected \[batch N 18\]"),
        ({"B": torch.zeros(4, 3, dtype=torch.cfloat)}, TypeError, "B is complex64"),
        ({"u": torch.ones(2, 4, 9, dtype=torch.int64)}, TypeError, "u is int64"),
        ({"cu_seqlens": torch.tensor([0, 9])}, ValueError, "u has 2 rows; expected one, since cu_seqlens packs"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(change, error, message):
    good = {"u": torch.randn(2, 4, 9), "delta": torch.randn(2, 4, 9), "A": torch.randn(4, 3)}
    good |= {"B": torch.randn(2, 3, 9), "C": torch.randn(2, 3, 9)}
    with pytest.raises(error, match=message):
        selective_scan(**good | change)


def test_states_of_packed_texts_have_a_row_for_each():
    named = inputs(batch=1)
    with pytest.raises(
        ValueError, match=r"initial_state has shape \[1, 4, 3\]; expected \[texts D N\] with texts = 2, D = 4"
    ):
        selective_scan(**named, cu_seqlens=torch.tensor([0, 5, 9]))
