"""selective_scan by its Triton kernels: in the interpreter, or on a GPU where `make test-gpu` runs them."""

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
from triton_kernels import DEVICE, MARKS, by_triton, check_against_definition, dtypes

from firebolt_vl.bench.budget import over_budget
from firebolt_vl.kernels import reference, selective_scan, use_implementation
from firebolt_vl.kernels.launch import recording
from firebolt_vl.kernels.selective_scan import shapes

pytestmark = MARKS
LENGTHS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 37)
# Of sizes that take several tiles, blocks of channels and slots already in a few numbers.
SMALL = {"FORWARD_STEPS": (4, 8), "BACKWARD_STEPS": (2, 4), "CHANNELS": (2, 8)}


def small(data, patch):
    """Tiles of other sizes than a GPU has."""
    for name, values in SMALL.items():
        patch.setattr(shapes, name, data.draw(st.sampled_from(values)))


def on_device(named):
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in named.items()}


def run(named, **options):
    """y and the last state by Triton, on a CPU."""
    with use_implementation("triton"):
        y, last = selective_scan(**on_device(named | options), return_last_state=True)
    return y.cpu(), last.cpu()


def check(named, cotangents, **options):
    """Value, last state and every gradient of the arguments `named` within the budget."""
    ours, theirs = (in_order(op, named) for op in (selective_scan, reference.selective_scan))
    return check_against_definition(ours, list(named.values()), cotangents, definition=theirs, **options)


def assert_defined(found, named):
    """y and the last state, of steps through softplus, are within the budget of the definition's."""
    definition = in_order(reference.selective_scan, named, delta_softplus=True)
    problem = over_budget(found, lambda changed: definition(*changed), list(named.values()))
    assert problem is None, problem


def float32_inputs(**sizes):
    return inputs(dtype=torch.float32, **sizes)


@given(
    data=st.data(),
    batch=st.integers(1, 2),
    N=st.sampled_from([1, 2, 3, 5, 16, 17]),
    groups=st.sampled_from([(1, 1), (2, 2), (3, 1), (2, 3)]),
    repeats=st.sampled_from([1, 3]),
    L=st.sampled_from(LENGTHS),
    kinds=st.tuples(KINDS, KINDS),
    softplus=st.booleans(),
    optional=st.sets(st.sampled_from(["D", "z", "delta_bias", "initial_state"])),
    dtype=dtypes(),
    of_parameters=dtypes(),
)
def test_values_states_and_gradients_are_the_definitions(
    data, batch, N, groups, repeats, L, kinds, softplus, optional, dtype, of_parameters
):
    D = math.lcm(*groups) * repeats
    of = {"u": (batch, D, L), "delta": (batch, D, L), "A": (D, N), "D": (D,), "z": (batch, D, L)}
    of |= {"delta_bias": (D,), "initial_state": (batch, D, N)}
    for name, kind, count in zip("BC", kinds, groups, strict=True):
        of[name] = matrix_shape(kind, batch, D, N, L, count)
    names = [name for name in of if name in {"u", "delta", "A", "B", "C"} | optional]
    sequences = {"u", "delta", "z", "B", "C"}
    named = {x: data.draw(layouts(*of[x], dtype=dtype if x in sequences else of_parameters)) for x in names}
    named["A"] = -named["A"].abs()
    if not softplus:  # steps back in time would let states grow until they overflow
        named |= {name: named[name].abs() for name in ("delta", "delta_bias") if name in named}
    cotangents = [data.draw(layouts(batch, D, L, dtype=dtype)), data.draw(layouts(batch, D, N, dtype=torch.float32))]
    with pytest.MonkeyPatch.context() as patch:
        small(data, patch)
        check(named, cotangents, delta_softplus=softplus)


@st.composite
def borders(draw, L: int):
    """Of texts in a row of L; some are empty."""
    inside = draw(st.lists(st.integers(0, L), max_size=4))
    return torch.tensor([0, *sorted(inside), L], dtype=draw(st.sampled_from([torch.int32, torch.int64])))


@given(
    data=st.data(),
    L=st.sampled_from(LENGTHS),
    kinds=st.tuples(KINDS, KINDS),
    state=st.booleans(),
    dtype=dtypes(),
)
def test_packed_texts_are_within_the_budget_and_each_as_if_it_were_alone(data, L, kinds, state, dtype):
    cu_seqlens = data.draw(borders(L))
    texts = len(cu_seqlens) - 1
    named = float32_inputs(batch=1, L=L, B_kind=kinds[0], C_kind=kinds[1])
    named = {name: x.to(dtype) if x.shape[-1] == L else x for name, x in named.items()}
    named["initial_state"] = torch.randn(texts, 4, 3)
    if not state:
        del named["initial_state"]
    with pytest.MonkeyPatch.context() as patch:
        small(data, patch)
        cotangents = [torch.randn(1, 4, L), torch.randn(texts, 4, 3)]
        check(named, cotangents, delta_softplus=True, cu_seqlens=cu_seqlens)
        y, last = run(named, delta_softplus=True, cu_seqlens=cu_seqlens)
        for text, (first, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
            h = named["initial_state"][text : text + 1] if state else torch.zeros(1, 4, 3)
            if first == end:
                assert torch.equal(last[text : text + 1], h)
                continue
            of_time = {"u", "delta", "z"} | {x for x, kind in zip("BC", kinds) if kind != "constant"}
            alone = {name: x[..., first:end] if name in of_time else x for name, x in named.items()}
            alone |= {"initial_state": h}
            assert_defined([y[..., first:end], last[text : text + 1]], alone)
            if end - first > 1:  # of one step there is another kernel, whose products round otherwise
                y_alone, last_alone = run(alone, delta_softplus=True)
                assert torch.equal(y_alone, y[..., first:end])
                assert torch.equal(last_alone, last[text : text + 1])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "complex" not in name])
def test_values_states_and_gradients_are_the_originals_in_float32(name):
    vectors = golden.load("selective_scan")
    arguments = vectors.under(f"{name}.in")
    cotangent = arguments.pop("cotangent").float()
    named = {key: x.float() for key, x in arguments.items()}
    cotangents = [cotangent, torch.zeros_like(vectors[f"{name}.out.last_state"]).float()]
    softplus = CASES[name]["delta_softplus"]
    found = check(named, cotangents, delta_softplus=softplus)
    wanted = [vectors[f"{name}.out.y"], vectors[f"{name}.out.last_state"]]
    wanted += [vectors[f"{name}.grad.{key}"] for key in named]
    for ours, exact in zip(found, wanted, strict=True):
        assert_close(ours.cpu(), exact, relative=2e-6)


@given(L=st.sampled_from([1, 5, 16, 17, 40]), cuts=st.lists(st.integers(0, 40), max_size=3))
def test_pieces_that_hand_on_their_state_are_the_whole(L, cuts):
    named = float32_inputs(L=L, B_kind="grouped")
    h, parts = named["initial_state"], []
    for first, end in itertools.pairwise(sorted({0, L, *(cut for cut in cuts if cut < L)})):
        piece = {name: named[name][..., first:end] for name in ("u", "delta", "z", "B", "C")}
        part, h = run(named | piece | {"initial_state": h}, delta_softplus=True)
        parts.append(part)
    assert_defined([torch.cat(parts, -1), h], named)


def test_steps_are_the_whole():
    named = float32_inputs(L=19)
    h, steps = named["initial_state"], []
    for t in range(19):
        now = {name: named[name][..., t : t + 1] for name in ("u", "delta", "z", "B", "C")}
        y_t, h = run(named | now | {"initial_state": h}, delta_softplus=True)
        steps.append(y_t)
    assert_defined([torch.cat(steps, -1), h], named)


@pytest.mark.parametrize("L", [1, 37])
def test_it_is_linear_in_inputs_and_initial_state_together(L):
    named = float32_inputs(L=L)
    other = {name: torch.randn_like(named[name]) for name in ("u", "initial_state")}
    mixed = {name: 2 * named[name] - 3 * other[name] for name in other}
    definition = in_order(reference.selective_scan, named, delta_softplus=True)

    def combined(tensors):
        one = dict(zip(named, tensors))
        two = one | dict(zip(other, tensors[len(named) :]))
        return [2 * first - 3 * second for first, second in zip(definition(*one.values()), definition(*two.values()))]

    whole = run(named | mixed, delta_softplus=True)
    assert (problem := over_budget(whole, combined, [*named.values(), *other.values()])) is None, problem


@pytest.mark.parametrize("t", [0, 1, 15, 16, 36])
def test_a_later_input_changes_no_bit_of_an_earlier_output(t):
    named = float32_inputs(L=37)
    changed = dict(named)
    for name in ("u", "delta", "z", "B", "C"):
        changed[name] = named[name].clone()
        changed[name][..., t:] = float("nan")
    (before, _), (after, _) = (run(x, delta_softplus=True) for x in (named, changed))
    assert torch.equal(before[..., :t], after[..., :t])


@pytest.mark.parametrize("kind", ["constant", "grouped"])
def test_it_repeats_bit_for_bit(kind):
    named = float32_inputs(D=12, L=37, B_kind=kind, C_kind=kind)
    op, cotangents = in_order(selective_scan, named), [torch.randn(2, 12, 37), torch.randn(2, 12, 3)]
    for first, second in zip(*(by_triton(op, list(named.values()), cotangents) for _ in range(2))):
        assert torch.equal(first, second)


def test_offsets_pass_2_to_the_31():
    """Channels 2^30 numbers apart, backward too. Memory that nothing touches costs nothing."""
    named, cotangents = float32_inputs(batch=1, D=3, L=5, groups=1), [torch.randn(1, 3, 5), torch.randn(1, 3, 3)]
    op, found = in_order(selective_scan, named), []
    for far in (False, True):
        tensors, (dy, dlast) = list(named.values()), cotangents
        if far:
            u, dy = (
                torch.empty(3 * 2**30, device=DEVICE).as_strided((1, 3, 5), (0, 2**30, 1)).copy_(x)
                for x in (named["u"], dy)
            )
            tensors = [u, *tensors[1:]]
        found.append(by_triton(op, tensors, [dy, dlast]))
    for ours, near in zip(*found):
        assert torch.equal(ours, near)


def test_softplus_is_exact_to_three_roundings_everywhere():
    """With A = 0 and all else 1 the first output is the step itself."""
    x = torch.linspace(-80, 40, 2001).reshape(1, -1, 1)
    one = torch.ones(x.shape[1], 1)
    y, _ = run({"u": torch.ones_like(x), "delta": x, "A": 0 * one, "B": one, "C": one}, delta_softplus=True)
    exact = torch.nn.functional.softplus(x.double())
    assert ((y.double() - exact) / exact).abs().max() < 3 * torch.finfo(torch.float32).eps


def test_steps_that_are_not_finite_are_as_the_definitions():
    delta, one = torch.tensor([-math.inf, math.inf, math.nan, -1e4]).reshape(1, 4, 1), torch.ones(4, 1)
    named = {"u": torch.ones(1, 4, 1), "delta": delta, "A": -one, "B": one, "C": one, "delta_softplus": True}
    assert torch.equal(run(named)[0].nan_to_num(7), reference.selective_scan(**named).nan_to_num(7))


def test_positions_that_take_no_time_leave_the_state_as_it_is():
    """What the modulator's Mamba does with padding: the softplus of -1e4 is 0, exactly."""
    named = float32_inputs(L=20) | {"delta": torch.full((2, 4, 20), -1e4)}
    _, last = run(named, delta_softplus=True)
    assert torch.equal(last, named["initial_state"])


@pytest.mark.parametrize("L", [3, 19])
def test_growing_modes_that_overflow_beyond_the_last_step_leave_no_trace(L):
    named = float32_inputs(L=L) | {"A": torch.full((4, 3), 80 / L), "delta": torch.ones(2, 4, L)}
    del named["delta_bias"]
    for tensor in check(named, [torch.randn(2, 4, L), torch.randn(2, 4, 3)]):
        assert torch.isfinite(tensor).all()


def test_large_steps_forget_and_stay_finite():
    named = float32_inputs(L=20) | {"delta": torch.full((2, 4, 20), 1e4)}
    op = in_order(selective_scan, named)
    for tensor in by_triton(op, list(named.values()), [torch.randn(2, 4, 20), torch.randn(2, 4, 3)]):
        assert torch.isfinite(tensor).all()


def test_a_nan_stays_in_its_row_and_channel():
    named = float32_inputs(L=20)
    clean, clean_last = run(named)
    named["u"][1, 2, 3] = float("nan")
    y, last = run(named)
    assert y[1, 2, 3:].isnan().all()
    assert last[1, 2].isnan().all()
    y[1, 2, 3:], last[1, 2] = clean[1, 2, 3:], clean_last[1, 2]
    assert torch.equal(y, clean)
    assert torch.equal(last, clean_last)


@pytest.mark.parametrize("last", [True, False])
def test_gradients_of_one_output_alone(last):
    named = float32_inputs(L=18)
    tensors, cotangent = list(named.values()), torch.randn(2, 4, 3 if last else 18)

    def gradients(op, tensors, cotangent):
        leaves = [x.detach().to(DEVICE).requires_grad_() for x in tensors]
        output = in_order(op, named)(*leaves)[last]
        found = torch.autograd.grad(output, leaves, cotangent.to(output), allow_unused=True)
        return [torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(leaves, found)]

    with use_implementation("triton"):
        found = gradients(selective_scan, tensors, cotangent)

    def defined(changed):
        return gradients(reference.selective_scan, changed[:-1], changed[-1])

    assert (problem := over_budget(found, defined, [*tensors, cotangent], names=list(named))) is None, problem


def test_what_gradients_need_is_kept_only_for_them_and_is_a_sixteenth_of_the_states():
    named = on_device(float32_inputs(N=16, L=64))
    with recording() as launches, use_implementation("triton"):
        selective_scan(**named)
        named["u"].requires_grad_()
        selective_scan(**named)
        with torch.no_grad():
            selective_scan(**named)
    kept = [launch.arguments["states_ptr"] for launch in launches]
    assert [states is None for states in kept] == [True, False, True]
    assert kept[1].numel() == 2 * 4 * 16 * 64 // 16


def test_gradients_without_what_they_need_are_refused_in_words():
    tensors = [x.to(DEVICE).requires_grad_() for x in float32_inputs().values()]
    *sequences_and_matrices, state = tensors
    u, delta, D, z, delta_bias, B, C, A = sequences_and_matrices
    y, *_ = torch.ops.firebolt_vl.selective_scan(u, delta, A, B, C, D, z, delta_bias, True, state, None, False)
    with pytest.raises(RuntimeError, match="selective_scan: keep_states is False; expected True"):
        torch.autograd.grad(y.sum(), u)


@pytest.mark.parametrize("last", [True, False])
def test_channels_that_come_last_go_out_last(last):
    named = float32_inputs(D=6, L=9)
    if last:
        named |= {name: named[name].mT.contiguous().mT for name in ("u", "delta", "z")}
    leaves = [x.to(DEVICE).requires_grad_() for x in named.values()]
    with use_implementation("triton"):
        y, _ = in_order(selective_scan, named)(*leaves)
    du, ddelta = torch.autograd.grad(y.sum(), leaves[:2])
    assert {x.mT.is_contiguous() for x in (y, du, ddelta)} == {last}


def test_float64_goes_by_pytorch_and_a_complex_A_by_the_definition():
    named, modes = inputs(), inputs(is_complex=True, dtype=torch.float32)
    with use_implementation("triton"):
        y = selective_scan(**on_device(named))
        of_complex = selective_scan(**on_device(modes))
    assert_close(y.cpu(), reference.selective_scan(**named), relative=1e-12)
    assert torch.equal(of_complex.cpu(), reference.selective_scan(**modes)) or DEVICE == "cuda"


@pytest.mark.parametrize("N", [16, 64, 256])
@pytest.mark.parametrize("L", [1, 33])
def test_sizes_of_models_are_within_the_budget(N, L):
    named = float32_inputs(batch=1, D=8, N=N, L=L, groups=1)
    named = {name: x.clamp(-1, 1) for name, x in named.items()}
    check(named, [torch.randn(1, 8, L), torch.randn(1, 8, N)], delta_softplus=True)
