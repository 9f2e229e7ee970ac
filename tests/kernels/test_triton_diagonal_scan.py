"""diagonal_scan by its Triton kernels: in the interpreter, or on a GPU where `make test-gpu` runs them."""

import itertools

import golden
import pytest
import torch
from correlations import layouts
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_to_rounding, assert_within_budget, relative_error
from sequences import few_lengths, random_modes
from triton_kernels import DEVICE, DTYPES, MARKS, by_triton, check_against_definition, dtypes

from firebolt_vl.bench.budget import over_budget, widened
from firebolt_vl.kernels import diagonal_scan, reference
from firebolt_vl.kernels.common import triton_tiles
from firebolt_vl.kernels.common.device import use_implementation

pytestmark = MARKS
# A step, a chunk and several, with their neighbours, and primes. Chunks of the other size and more than one block of
# them come in the longer sequences, each once: the definition is slow.
LENGTHS = (1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 61, 97)
LONG = (127, 128, 129, 255, 256, 257, 263, 511, 512, 513, 547)
MODES = (1, 2, 3, 5, 16, 17, 33)
CASES = [case for case in golden.case_names("s4d_kernel") if case.startswith("ss")]


def complex_layouts(*shape: int):
    """Of `layouts`, or the conjugate of one that nobody has computed."""
    drawn = layouts(*shape, dtype=torch.complex64)
    return st.one_of(drawn, drawn.map(torch.conj))


def inputs(B=2, D=3, N=4, L=40, rows=None):
    """u, z, b, c, d_skip, h0 and cotangents of y and h_T."""
    z, b, c = random_modes(D, N).exp().to(torch.complex64), *torch.randn(2, D, N, dtype=torch.complex64)
    h0, dh = torch.randn(2, rows or B, D, N, dtype=torch.complex64)
    return [torch.randn(B, D, L), z, b, c, torch.randn(D), h0], [torch.randn(B, D, L), dh]


def run(*arguments, **options):
    """Outputs alone, on the CPU."""
    moved = [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in arguments]
    options = {name: value.to(DEVICE) for name, value in options.items()}
    with use_implementation("triton"):
        return [output.cpu() for output in diagonal_scan(*moved, **options)]


def assert_defined(found, *tensors):
    """y and the last state are within the budget of the definition's."""
    problem = over_budget(found, lambda changed: reference.diagonal_scan(*changed), tensors)
    assert problem is None, problem


@given(
    data=st.data(),
    sizes=st.tuples(st.integers(1, 2), st.integers(2, 3), st.sampled_from(MODES)),
    L=st.sampled_from(LENGTHS),
    dtype=dtypes(),
    skip=st.booleans(),
    state=st.booleans(),
)
def test_value_and_every_gradient_are_the_definitions(data, sizes, L, dtype, skip, state):
    B, D, N = sizes
    u, dy = data.draw(layouts(B, D, L, dtype=dtype)), data.draw(layouts(B, D, L, dtype=torch.float32))
    z, b, c = (data.draw(complex_layouts(D, N)) for _ in range(3))
    tensors = [u, z / (1 + z.abs()), b, c]
    if skip or state:
        tensors.append(data.draw(layouts(D, dtype=torch.float32)) if skip else torch.zeros(D))
    if state:
        tensors.append(data.draw(complex_layouts(B, D, N)))
    dh = data.draw(complex_layouts(B, D, N))
    check_against_definition(diagonal_scan, tensors, [dy, dh])


@pytest.mark.parametrize("L", LONG)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_long_sequences_are_the_definitions(dtype, L):
    (u, *rest), cotangents = inputs(B=1, D=4, N=5, L=L)
    check_against_definition(diagonal_scan, [u.to(dtype), *rest], cotangents)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_beyond_what_fills_a_gpu_are_added_up_in_a_program(monkeypatch, dtype):
    monkeypatch.setattr(triton_tiles, "PROGRAMS", 1)
    (u, *rest), cotangents = inputs(B=5, D=2, L=70)
    check_against_definition(diagonal_scan, [u.to(dtype), *rest], cotangents)


@given(data=st.data(), L=st.sampled_from(LENGTHS), state=st.booleans(), indices=st.sampled_from(["int32", "int64"]))
def test_packed_texts_are_the_definitions(data, L, state, indices):
    cuts = data.draw(st.lists(st.integers(0, L), max_size=2))  # repeated ones, and those at an end, make empty texts
    borders = torch.tensor([0, *sorted(cuts), L], dtype=getattr(torch, indices))
    tensors, cotangents = inputs(B=1, L=L, rows=len(cuts) + 1)
    check_against_definition(diagonal_scan, tensors if state else tensors[:5], cotangents, cu_seqlens=borders)


@pytest.mark.parametrize("borders", [(0, 0, 300, 547), (0, 257, 258, 258, 600), (0, 16, 32, 64, 64)])
def test_longer_packed_texts_are_the_definitions(borders):
    tensors, cotangents = inputs(B=1, L=borders[-1], rows=len(borders) - 1)
    check_against_definition(diagonal_scan, tensors, cotangents, cu_seqlens=torch.tensor(borders))


@given(data=st.data(), L=st.sampled_from([2, 33, 70]))
def test_packed_texts_give_what_each_gives_alone(data, L):
    cuts = sorted(data.draw(st.lists(st.integers(0, L), max_size=2)))
    borders = torch.tensor([0, *cuts, L])
    (u, *modes, h0), _ = inputs(B=1, D=1, L=L, rows=len(cuts) + 1)
    y, last = run(u, *modes, h0, cu_seqlens=borders)
    for text, (first, end) in enumerate(itertools.pairwise(borders.tolist())):
        before, after = h0[text : text + 1], last[text : text + 1]
        if first == end:
            assert torch.equal(after, before)
        else:
            assert_defined([y[..., first:end], after], u[..., first:end], *modes, before)


@given(cuts=st.lists(st.integers(0, 70), max_size=2), state=st.booleans())
def test_pieces_that_hand_on_their_state_are_the_whole(cuts, state):
    (u, *modes, h0), _ = inputs(B=1, D=1, L=70)
    h0 = h0 if state else torch.zeros_like(h0)
    h, parts = h0 if state else None, []
    for first, end in itertools.pairwise(sorted({0, 70, *cuts})):
        part, h = run(u[..., first:end], *modes, h)
        parts.append(part)
    assert_defined([torch.cat(parts, -1), h], u, *modes, h0)


@given(L=few_lengths)
def test_steps_are_the_whole(L):
    (u, *modes, h0), _ = inputs(B=1, L=L)
    h, steps = h0, []
    for u_t in u.split(1, -1):
        y_t, h = run(u_t, *modes, h)
        steps.append(y_t)
    assert_defined([torch.cat(steps, -1), h], u, *modes, h0)


@pytest.mark.parametrize("L", [1, 50])
def test_it_is_linear_in_the_initial_state(L):
    (u, *modes, _, h), _ = inputs(L=L)
    g = torch.randn_like(h)

    def mixed(tensors):
        u, *modes, h, g = tensors
        parts = (u, None), (0 * u, h), (0 * u, g)
        scanned = [reference.diagonal_scan(u, *modes, None, h) for u, h in parts]
        return [part + 2 * of_h - 3 * of_g for part, of_h, of_g in zip(*scanned)]

    problem = over_budget(run(u, *modes, None, 2 * h - 3 * g), mixed, [u, *modes, h, g])
    assert problem is None, problem


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_last_states_are_the_originals(name):
    """To what the rounding of z to float32 leaves of them, once for each step."""
    vectors = golden.load("s4d_kernel")
    z, b, c = (vectors[f"{name}.step.{part}"].to(torch.complex64) for part in ("dA", "dB", "dC"))
    u, h0 = vectors[f"{name}.in.u"], vectors[f"{name}.in.state0"].to(torch.complex64)
    y, last = run(u.float(), z, b, c.squeeze(0))
    assert relative_error(y, vectors[f"{name}.out.y_recurrent"]) < 1e-5
    assert relative_error(last, vectors[f"{name}.out.last_state"]) < 1e-5
    from_state, _ = run(torch.zeros_like(u).float(), z, b, c.squeeze(0), None, h0)
    assert relative_error(from_state, vectors[f"{name}.out.K_state"]) < 1e-5


@pytest.mark.parametrize("decay", [1e-4, 0.0])
def test_slow_modes_keep_their_precision_over_many_chunks(decay):
    """The same rounding of z^32 at every chunk would add up here to many times the error of the definition."""
    (u, _, b, c, d_skip, h0), cotangents = inputs(B=1, D=4, N=8, L=3000)
    z = torch.exp(torch.complex(torch.full((4, 8), -decay), 3 * torch.rand(4, 8)))
    check_against_definition(diagonal_scan, [u, z, b, c, d_skip, h0], cotangents)


def test_a_mode_on_the_unit_circle_has_not_drifted_after_100_000_steps():
    L = 100_000
    z = torch.polar(torch.ones(1, 4), torch.rand(1, 4))
    b, h0 = torch.zeros(1, 4, dtype=torch.complex64), torch.ones(1, 1, 4, dtype=torch.complex64)
    _, last = run(torch.zeros(1, 1, 1).expand(1, 1, L), z, b, b, None, h0)
    assert relative_error(last[0], z.to(torch.complex128) ** L) < 1e-6


@pytest.mark.parametrize("L", [1, 2, 50])
def test_modes_that_are_zero_forget_at_once(L):
    (u, z, b, c, d_skip, h0), cotangents = inputs(L=L)
    _, last, *_ = check_against_definition(diagonal_scan, [u, torch.zeros_like(z), b, c, d_skip, h0], cotangents)
    exact = b.to(torch.complex128) * u[..., -1:]
    assert_to_rounding(torch.view_as_complex(last.detach()).cpu(), exact, terms=1)


@pytest.mark.parametrize("L", [3, 19])
def test_growing_modes_that_overflow_beyond_the_last_step_leave_no_trace(L):
    (u, z, *rest), cotangents = inputs(L=L)
    z = torch.polar(torch.full(z.shape, 2.0 ** (90 / L)), torch.rand(z.shape))
    for tensor in check_against_definition(diagonal_scan, [u, z, *rest], cotangents):
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("borders", [(0, 3), (0, 5, 5, 12), (0, 0, 4, 7, 9, 14)])
def test_growing_modes_that_overflow_beyond_the_longest_text_leave_no_trace(borders):
    longest = max(end - start for start, end in itertools.pairwise(borders))
    (u, z, *rest), cotangents = inputs(B=1, L=borders[-1], rows=len(borders) - 1)
    z = torch.polar(torch.full(z.shape, 2.0 ** (90 / longest)), torch.rand(z.shape))
    cu_seqlens = torch.tensor(borders, device=DEVICE)
    for tensor in check_against_definition(diagonal_scan, [u, z, *rest], cotangents, cu_seqlens=cu_seqlens):
        assert torch.isfinite(tensor).all()


def test_a_text_that_overflows_leaves_no_trace_in_a_shorter_one():
    (u, z, *rest, d_skip, h0), _ = inputs(B=1, L=37, rows=2)
    z = torch.polar(torch.full(z.shape, 2.0**18), torch.rand(z.shape))
    y, h = run(u, z, *rest, d_skip, h0, cu_seqlens=torch.tensor([0, 5, 37], device=DEVICE))
    alone = run(u[..., :5], z, *rest, d_skip, h0[:1])
    assert not torch.isfinite(h[1]).all()
    assert torch.isfinite(h[0]).all()
    torch.testing.assert_close((y[..., :5], h[:1]), alone)


@pytest.mark.parametrize("t", [0, 15, 16, 40])
def test_a_later_input_changes_no_bit_of_an_earlier_output(t):
    (u, *rest), _ = inputs(L=50)
    changed = u.clone()
    changed[..., t:] = 100
    assert torch.equal(run(u, *rest)[0][..., :t], run(changed, *rest)[0][..., :t])


@pytest.mark.parametrize("cu_seqlens", [None, (0, 300, 300, 550)])
def test_it_repeats_bit_for_bit(cu_seqlens):
    options = {} if cu_seqlens is None else {"cu_seqlens": torch.tensor(cu_seqlens, device=DEVICE)}
    tensors, cotangents = inputs(B=1, L=550, rows=3 if options else None)
    for first, second in zip(*(by_triton(diagonal_scan, tensors, cotangents, **options) for _ in range(2))):
        assert torch.equal(first, second)


def test_offsets_pass_2_to_the_31():
    """Channels 2^30 numbers apart, backward too. Memory that nothing touches costs nothing."""
    (u, *rest), (dy, dh) = inputs(B=1, D=3, L=20)
    far = [torch.empty(3 * 2**30, device=DEVICE).as_strided((1, 3, 20), (1, 2**30, 1)).copy_(x) for x in (u, dy)]
    wanted = by_triton(diagonal_scan, [u, *rest], [dy, dh])
    leaves = [far[0].requires_grad_(), *(x.to(DEVICE).requires_grad_() for x in rest)]
    with use_implementation("triton"):
        y, last = diagonal_scan(*leaves)
    gradients = torch.autograd.grad((y, last), leaves, (far[1], dh.to(DEVICE)))
    for ours, theirs in zip((y, last, *gradients), wanted):
        assert torch.equal(torch.view_as_real(ours) if ours.is_complex() else ours, theirs)


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("L", [1, 40])
def test_gradients_where_one_output_alone_is_used(used, L):
    tensors, cotangents = inputs(L=L)

    def gradients(op, cast):
        leaves = [cast(x).to(DEVICE).requires_grad_() for x in tensors]
        output = op(*leaves)[used]
        return torch.autograd.grad(output, leaves, cotangents[used].to(output), allow_unused=True)

    with use_implementation("triton"):
        found = gradients(diagonal_scan, lambda x: x)
    exact = gradients(reference.diagonal_scan, widened)
    own = gradients(reference.diagonal_scan, lambda x: x)
    for ours, theirs, truth in zip(found, own, exact):
        if truth is None or not truth.any():
            assert ours is None or not ours.any()
        else:
            assert_within_budget(ours, theirs, truth)


def test_float64_goes_by_pytorch():
    tensors, _ = inputs()
    tensors[-1] = tensors[-1].to(torch.complex128)
    assert [x.dtype for x in run(*tensors)] == [torch.float32, torch.complex128]
