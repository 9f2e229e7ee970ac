"""correlation_context by its Triton kernels: in the interpreter, or on a GPU where `make test-gpu` runs them."""

import math

import pytest
import torch
from correlations import decided, layouts, masks
from hypothesis import assume, given
from hypothesis import strategies as st
from triton_kernels import DEVICE, DTYPES, MARKS, by_triton, check_against_definition, dtypes

from firebolt_vl.kernels import correlation_context, reference, use_implementation
from firebolt_vl.kernels.common import triton_tiles

pytestmark = MARKS


def inputs(B=2, T=4, G=6, H=3, D_h=5, D=7, dtype=torch.float32):
    shapes = (B, T, H, D_h), (B, G, H, D_h), (B, G, D)
    return [torch.randn(shape).to(dtype) for shape in shapes]


def cotangents(q, k, v):
    return [torch.randn(*q.shape[:2], v.shape[2]), torch.randn(*q.shape[:2], k.shape[1])]


@st.composite
def sizes(draw):
    """B, T, G, H, D_h, D: one block and several, powers of two and their neighbours."""
    T = draw(st.sampled_from([1, 2, 3, 5, 9, 16, 17, 33]))
    G = draw(st.sampled_from([1, 2, 5, 7, 16, 17, 31, 65]))
    return (
        draw(st.integers(1, 2)),
        T,
        G,
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 4, 17])),
        draw(st.sampled_from([1, 7, 32, 40])),
    )


@given(data=st.data(), size=sizes(), dtype=dtypes(), renormalize=st.booleans(), ties=st.booleans())
def test_value_and_gradients_are_the_definitions(data, size, dtype, renormalize, ties):
    B, T, G, H, D_h, D = size
    q = data.draw(layouts(B, T, H, D_h, dtype=dtype, integers=ties))
    k = data.draw(layouts(B, G, H, D_h, dtype=dtype, integers=ties))
    v = data.draw(layouts(B, G, D, dtype=dtype))
    top_k = data.draw(st.none() | st.integers(0, G + 1))
    options = {"grid_mask": data.draw(masks(B, G)), "text_mask": data.draw(masks(B, T)), "renormalize": renormalize}
    dropped = data.draw(st.sampled_from([0.0, 0.3]))
    assume(decided(q, k, top_k, options["grid_mask"]))
    dc, dw = data.draw(layouts(B, T, D, dtype=dtype)), data.draw(layouts(B, T, G, dtype=dtype))
    tied = (0, 1) if ties else ()
    check_against_definition(
        correlation_context, [q, k, v], [dc, dw], tied, top_k=top_k, dropout_p=dropped, seed=torch.tensor(5), **options
    )


@pytest.mark.parametrize(
    ("G", "top_k"), [(5, 4), (5, 1), (33, 3), (60, 30), (130, 4), (130, 100), (130, 50), (1024, 512), (1030, 5)]
)
def test_equal_scores_keep_the_first_grids_and_exactly_k_of_them(G, top_k):
    """By every way to select: passes, removal, bisection; where all are equal, and where two values alternate."""
    q, k, v = inputs(B=1, T=3, G=G, H=1, D_h=4)
    _, w = by_triton(correlation_context, [q, torch.ones_like(k), v], cotangents(q, k, v), top_k=top_k)[:2]
    torch.testing.assert_close(w[..., :top_k], torch.full_like(w[..., :top_k], 1 / top_k))
    assert (w[..., top_k:] == 0).all()
    q, k = q.abs(), (torch.arange(G) % 2)[None, :, None, None].expand(1, G, 1, 4).float()
    _, w = by_triton(correlation_context, [q, k, v], cotangents(q, k, v), top_k=top_k)[:2]
    order = torch.cat([torch.arange(1, G, 2), torch.arange(0, G, 2)])
    assert (w[..., order[:top_k]] > 0).all()
    assert (w[..., order[top_k:]] == 0).all()


@pytest.mark.parametrize(("G", "top_k"), [(70, 1), (100, 4), (100, 80), (130, 24), (130, 30), (1030, 4)])
@pytest.mark.parametrize("renormalize", [True, False])
def test_many_grids_of_which_many_tie(G, top_k, renormalize):
    """By every way to select among grids that fill registers, and from memory; masks leave a row fewer than top_k."""
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randint(-1, 2, (2, n, 2, 4), generator=generator).float() for n in (5, G))
    v, dc, dw = (torch.randn(2, *shape, generator=generator) for shape in ((G, 7), (5, 7), (5, G)))
    grid_mask, text_mask = torch.rand(2, G, generator=generator) < 0.8, torch.arange(5).expand(2, 5) > 0
    grid_mask[1, 3:] = False
    masks = {"grid_mask": grid_mask, "text_mask": text_mask}
    check_against_definition(
        correlation_context, [q, k, v], [dc, dw], (0, 1), top_k=top_k, renormalize=renormalize, **masks
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_programs_take_larger_blocks(dtype, monkeypatch):
    monkeypatch.setattr(triton_tiles, "PROGRAMS", 4)
    assert triton_tiles.block_of_tokens(2, 37) == 32
    q, k, v = inputs(T=37, G=12, dtype=dtype)
    check_against_definition(correlation_context, [q, k, v], cotangents(q, k, v), top_k=3)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("G", "top_k"), [(6, 0), (6, 2), (6, 5), (70, 30)])
@pytest.mark.parametrize("scale", [1e4, -1e4, 1e25])
def test_extreme_scores_give_finite_weights_and_gradients(renormalize, G, top_k, scale):
    q, k, v = inputs(G=G)
    q, k = q.abs() * scale, -k.abs() * (scale if scale > 1e5 else 1)
    found = by_triton(correlation_context, [q, k, v], cotangents(q, k, v), top_k=top_k, renormalize=renormalize)
    for tensor in found:
        assert torch.isfinite(tensor).all()
    if scale > 1e5:
        assert (found[1] == 0).all()


@pytest.mark.parametrize(("G", "top_k"), [(6, 0), (6, 2), (70, 30)])
def test_nothing_under_a_mask_is_read(G, top_k):
    grid_mask, text_mask = torch.rand(2, G) < 0.5, torch.tensor([[True, False, True, True], [True, True, True, False]])
    grid_mask[1] = False

    def run(fill):
        torch.manual_seed(1)
        q, k, v = inputs(G=G)
        dc, dw = cotangents(q, k, v)
        q[~text_mask], k[~grid_mask], v[~grid_mask], dc[~text_mask], dw[~text_mask] = (fill,) * 5
        masks = {"grid_mask": grid_mask.to(DEVICE), "text_mask": text_mask.to(DEVICE)}
        return by_triton(correlation_context, [q, k, v], [dc, dw], top_k=top_k, **masks)

    for poisoned, clean in zip(run(math.nan), run(0.0)):
        assert torch.equal(poisoned, clean)
    for tensor in run(math.nan):
        assert (tensor[1] == 0).all()


@given(data=st.data(), size=sizes(), renormalize=st.booleans())
def test_permuting_grids_permutes_weights_and_leaves_the_context(data, size, renormalize):
    B, T, G, H, D_h, D = size
    q, k, v = (x.to(DEVICE) for x in inputs(B, T, G, H, D_h, D))
    top_k = data.draw(st.integers(0, G))
    assume(decided(q, k, top_k, None))
    order = torch.tensor(data.draw(st.permutations(range(G))), device=DEVICE)
    with use_implementation("triton"):
        c, w = correlation_context(q, k, v, top_k, renormalize=renormalize)
        c_permuted, w_permuted = correlation_context(q, k[:, order], v[:, order], top_k, renormalize=renormalize)
    torch.testing.assert_close(w_permuted, w[..., order])
    torch.testing.assert_close(c_permuted, c, rtol=1e-4, atol=1e-5)
    if renormalize:
        torch.testing.assert_close(w.sum(-1), torch.ones_like(w[..., 0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("G", [5, 70])
def test_results_repeat_bit_for_bit(dtype, G):
    tensors = inputs(T=40, G=G, dtype=dtype)
    gradients = cotangents(*tensors)
    options = {"top_k": 3, "dropout_p": 0.2, "seed": torch.tensor(1, device=DEVICE)}
    for first, second in zip(*(by_triton(correlation_context, tensors, gradients, **options) for _ in range(2))):
        assert torch.equal(first, second)


def test_dropout_drops_what_the_definition_drops():
    q, k, v = inputs(B=2, T=40, G=10)
    options = {"dropout_p": 0.5, "seed": torch.tensor(2**62 + 12345, device=DEVICE)}
    _, w = by_triton(correlation_context, [q, k, v], cotangents(q, k, v), top_k=3, **options)[:2]
    _, wanted = reference.correlation_context(*(x.to(DEVICE) for x in (q, k, v)), 3, **options)
    assert torch.equal(w == 0, wanted == 0)


def test_dtypes_may_differ():
    q, k, v = inputs(T=20)
    tensors = [q.half(), k, v.half()]
    c, w, dq, dk, dv = check_against_definition(correlation_context, tensors, cotangents(q, k, v), top_k=4)
    assert [t.dtype for t in (c, w, dq, dk, dv)] == [torch.float16, torch.float16, *(t.dtype for t in tensors)]


def test_offsets_pass_2_to_the_31():
    """Rows 2^28 numbers apart: the last lies beyond what 32 bits can say. Memory that nothing touches costs nothing."""
    q, k, v = inputs(B=1, T=20, G=5, H=2, D_h=4, D=6, dtype=torch.float16)
    far = torch.empty(20 * 2**28, dtype=torch.float16, device=DEVICE).as_strided((1, 20, 2, 4), (0, 2**28, 4, 1))
    far.copy_(q)
    gradients = [c.to(DEVICE) for c in cotangents(q, k, v)]
    with use_implementation("triton"):
        leaves = [far.requires_grad_(), *(x.to(DEVICE).requires_grad_() for x in (k, v))]
        outputs = correlation_context(*leaves, 3)
        found = [*outputs, *torch.autograd.grad(outputs, leaves, [g.half() for g in gradients])]
    wanted = by_triton(correlation_context, [q, k, v], gradients, top_k=3)
    for ours, near in zip(found, wanted):
        assert torch.equal(ours, near)
