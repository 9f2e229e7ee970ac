"""gated_scan by its Triton kernels: in the interpreter, or on a GPU where `make test-gpu` runs them."""

import itertools

import pytest
import torch
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from triton_kernels import DEVICE, MARKS, by_triton, check_against_definition, dtypes

from firebolt_vl.bench.budget import over_budget
from firebolt_vl.kernels import gated_scan, reference, use_implementation
from firebolt_vl.kernels.gated_scan import shapes, triton_backward, triton_forward
from firebolt_vl.kernels.launch import recording

pytestmark = MARKS
LENGTHS = (1, 2, 7, 15, 16, 17, 33, 50)
# How many programs are enough, and how short a piece may be: one piece, or some, of which the last ones are empty.
PIECES = st.sampled_from([(1, 64), (10**6, 1), (10**6, 20)])


def in_pieces(patch, pieces):
    enough, fewest_steps = pieces
    patch.setattr(triton_forward, "ENOUGH_FORWARD", enough)
    patch.setattr(triton_backward, "ENOUGH_BACKWARD", enough)
    patch.setattr(shapes, "FEWEST_STEPS", fewest_steps)
    patch.setattr(shapes, "MOST_PIECES", 3)
    patch.setattr(shapes, "CHANNELS", 2)


def inputs(B=2, T=9, D=3, dtype=torch.float32):
    """a, b and the initial state."""
    return [torch.rand(B, T, D).to(dtype), torch.randn(B, T, D).to(dtype), torch.randn(B, D)]


def run(*tensors, **options):
    """The states and the last one by Triton, on a CPU."""
    tensors, options = [x.to(DEVICE) for x in tensors], {name: x.to(DEVICE) for name, x in options.items()}
    with use_implementation("triton"):
        return [x.cpu() for x in gated_scan(*tensors, **options)]


@given(
    data=st.data(),
    B=st.integers(1, 2),
    T=st.sampled_from(LENGTHS),
    D=st.sampled_from([1, 3]),
    state=st.booleans(),
    pieces=PIECES,
    of_gates=dtypes(),
    dtype=dtypes(),
)
def test_values_states_and_gradients_are_the_definitions(data, B, T, D, state, pieces, of_gates, dtype):
    a, b = data.draw(layouts(B, T, D, dtype=of_gates)), data.draw(layouts(B, T, D, dtype=dtype))
    tensors = [a.tanh(), b, *([data.draw(layouts(B, D, dtype=torch.float32))] if state else [])]
    cotangents = [data.draw(layouts(B, T, D, dtype=dtype)), data.draw(layouts(B, D, dtype=torch.float32))]
    with pytest.MonkeyPatch.context() as patch:
        in_pieces(patch, pieces)
        check_against_definition(gated_scan, tensors, cotangents)


@st.composite
def borders(draw, T: int):
    """Of texts in a row of T; some are empty."""
    inside = draw(st.lists(st.integers(0, T), max_size=3))
    return torch.tensor([0, *sorted(inside), T], dtype=draw(st.sampled_from([torch.int32, torch.int64])))


@given(data=st.data(), T=st.sampled_from(LENGTHS), state=st.booleans(), pieces=PIECES, dtype=dtypes())
def test_packed_texts_are_the_definitions_which_runs_each_alone(data, T, state, pieces, dtype):
    cu_seqlens = data.draw(borders(T))
    texts = len(cu_seqlens) - 1
    a, b, _ = inputs(B=1, T=T, D=2, dtype=dtype)
    h = torch.randn(texts, 2)
    with pytest.MonkeyPatch.context() as patch:
        in_pieces(patch, pieces)
        cotangents = [torch.randn(1, T, 2), torch.randn(texts, 2)]
        tensors = [a, b, h] if state else [a, b]
        check_against_definition(gated_scan, tensors, cotangents, cu_seqlens=cu_seqlens)


def test_a_nan_stays_in_its_text_and_channel():
    a, b, h = inputs(B=1, T=50)
    h, cu_seqlens = torch.randn(3, 3), torch.tensor([0, 20, 20, 50])
    clean, clean_last = run(a, b, h, cu_seqlens=cu_seqlens)
    b[0, 4, 1] = float("nan")
    found, last = run(a, b, h, cu_seqlens=cu_seqlens)
    assert found[0, 4:20, 1].isnan().all()
    assert last[0, 1].isnan()
    found[0, 4:20, 1], last[0, 1] = clean[0, 4:20, 1], clean_last[0, 1]
    assert torch.equal(found, clean)
    assert torch.equal(last, clean_last)


@pytest.mark.parametrize("pieces", [(1, 64), (10**6, 1)])
@pytest.mark.parametrize("t", [0, 1, 15, 16, 36])
def test_a_later_input_changes_no_bit_of_an_earlier_output(pieces, t, monkeypatch):
    in_pieces(monkeypatch, pieces)
    a, b, h = inputs(T=37)
    changed = [a.clone(), b.clone()]
    for tensor in changed:
        tensor[:, t:] = float("nan")
    assert torch.equal(run(*changed, h)[0][:, :t], run(a, b, h)[0][:, :t])


@pytest.mark.parametrize("pieces", [(1, 64), (10**6, 1)])
def test_it_repeats_bit_for_bit(pieces, monkeypatch):
    in_pieces(monkeypatch, pieces)
    tensors, cotangents = inputs(T=50), [torch.randn(2, 50, 3), torch.randn(2, 3)]
    for first, second in zip(*(by_triton(gated_scan, tensors, cotangents) for _ in range(2))):
        assert torch.equal(first, second)


@pytest.mark.parametrize("D", [31, 33])
def test_channels_of_a_warp_are_within_the_budget(D):
    check_against_definition(gated_scan, inputs(B=1, T=17, D=D), [torch.randn(1, 17, D), torch.randn(1, D)])


def test_pieces_that_hand_on_their_state_are_the_whole():
    a, b, h = inputs(T=40)
    tensors, parts = [a, b, h], []
    for first, end in itertools.pairwise([0, 1, 17, 24, 40]):
        part, h = run(a[:, first:end], b[:, first:end], h)
        parts.append(part)
    problem = over_budget([torch.cat(parts, 1), h], lambda x: reference.gated_scan(*x), tensors)
    assert problem is None, problem


@pytest.mark.parametrize("pieces", [(1, 64), (10**6, 1)])
def test_gates_above_1_grow_nothing_of_nothing(pieces, monkeypatch):
    """The product of a piece's gates is infinite there."""
    in_pieces(monkeypatch, pieces)
    b = torch.zeros(1, 70, 3)
    b[:, -3:] = 1
    a = torch.full_like(b, 1e4)
    assert torch.equal(run(a, b)[0], reference.gated_scan(a, b)[0])


@pytest.mark.parametrize("last", [True, False])
def test_gradients_of_one_output_alone(last):
    tensors, cotangent = inputs(T=18), torch.randn(2, 3) if last else torch.randn(2, 18, 3)

    def gradients(op, tensors, cotangent):
        leaves = [x.detach().to(DEVICE).requires_grad_() for x in tensors]
        output = op(*leaves)[last]
        return torch.autograd.grad(output, leaves, cotangent.to(output))

    with use_implementation("triton"):
        found = gradients(gated_scan, tensors, cotangent)
    problem = over_budget(
        found, lambda x: gradients(reference.gated_scan, x[:-1], x[-1]), [*tensors, cotangent], names=["a", "b", "h"]
    )
    assert problem is None, problem


def test_offsets_pass_2_to_the_31():
    """Channels 2^30 numbers apart, backward too. Memory that nothing touches costs nothing."""
    (a, b, h), cotangents = inputs(B=1, T=5), [torch.randn(1, 5, 3), torch.randn(1, 3)]
    found = []
    for far in (False, True):
        tensors, (dh, dlast) = [a, b, h], cotangents
        if far:
            b_far, dh = (
                torch.empty(3 * 2**30, device=DEVICE).as_strided((1, 5, 3), (0, 1, 2**30)).copy_(x) for x in (b, dh)
            )
            tensors = [a, b_far, h]
        found.append(by_triton(gated_scan, tensors, [dh, dlast]))
    for ours, near in zip(*found):
        assert torch.equal(ours, near)


def test_what_gradients_need_is_kept_only_for_them_and_is_a_sixteenth_of_the_states():
    tensors = [x.to(DEVICE) for x in inputs(T=64, D=40)]
    with recording() as launches, use_implementation("triton"):
        gated_scan(*tensors)
        tensors[0].requires_grad_()
        gated_scan(*tensors)
        with torch.no_grad():
            gated_scan(*tensors)
    kept = [launch.arguments["states_ptr"] for launch in launches]
    assert [states is None for states in kept] == [True, False, True]
    assert kept[1].numel() == tensors[0].numel() // 16


def test_gradients_without_what_they_need_are_refused_in_words():
    a, b, h = (x.to(DEVICE).requires_grad_() for x in inputs())
    found, *_ = torch.ops.firebolt_vl.gated_scan(a, b, h, None, False)
    with pytest.raises(RuntimeError, match="gated_scan: keep_states is False; expected True"):
        torch.autograd.grad(found.sum(), a)


@pytest.mark.parametrize(
    ("B", "T", "D", "pieces"),
    [(8, 2048, 2048, 1), (1, 16384, 512, 64), (1, 100, 512, 1), (1, 130, 512, 2), (1, 1, 64, 1), (64, 64, 4096, 1)],
)
def test_time_is_divided_where_programs_are_few(B, T, D, pieces):
    with recording() as launches, use_implementation("triton"), torch.no_grad():
        gated_scan(*(torch.empty(B, T, D, dtype=torch.bfloat16) for _ in range(2)))
    assert [launch.arguments["pieces"] for launch in launches] == [pieces] * (2 if pieces > 1 else 1)
    channels = launches[-1].arguments["BLOCK_D"]
    assert launches[-1].grid == (B * pieces * D // channels,)
