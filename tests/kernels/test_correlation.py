"""correlation_context: the weights of grids for tokens."""

import math
from functools import partial

import golden
import pytest
import torch
from correlations import layouts, loop_weights, masks, sizes
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_close
from sequences import assert_op_within_budget

from firebolt_vl.kernels import correlation_context, reference
from firebolt_vl.kernels.modulation import weights

BOTH = pytest.mark.parametrize("op", [correlation_context, reference.correlation_context], ids=["public", "reference"])
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)


def inputs(B=2, T=4, G=6, H=3, D_h=5, D=7, dtype=torch.float64):
    return (
        torch.randn(B, T, H, D_h, dtype=dtype),
        torch.randn(B, G, H, D_h, dtype=dtype),
        torch.randn(B, G, D, dtype=dtype),
    )


@BOTH
@given(data=st.data(), size=sizes(), renormalize=st.booleans(), ties=st.booleans())
def test_weights_and_context_are_those_of_the_equations_written_out(op, data, size, renormalize, ties):
    B, T, G, H, D_h, D = size
    q = data.draw(layouts(B, T, H, D_h, integers=ties))
    k = data.draw(layouts(B, G, H, D_h, integers=ties))
    v = data.draw(layouts(B, G, D))
    top_k = data.draw(st.none() | st.integers(0, G + 1))
    grid_mask, text_mask = data.draw(masks(B, G)), data.draw(masks(B, T))
    c, w = op(q, k, v, top_k, grid_mask=grid_mask, text_mask=text_mask, renormalize=renormalize)
    wanted = loop_weights(q, k, top_k, grid_mask, text_mask, renormalize).mean(1)
    torch.testing.assert_close(w, wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(c, wanted @ v, rtol=1e-12, atol=1e-13)


@BOTH
@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in golden.names("cmm_upstream_") for case in golden.case_names(name)]
)
def test_weights_and_context_are_the_originals(op, name, case):
    vectors = golden.load(name)
    x_text, x_vision = vectors[f"{case}.in.x_text"], vectors[f"{case}.in.x_vision"]
    q, k = (
        (x @ vectors[f"param.{weight}.weight"].mT).unflatten(-1, (4, 8))
        for x, weight in ((x_text, "q_proj"), (x_vision, "k_proj"))
    )
    v = x_vision @ vectors["param.v_proj.weight"].mT
    masked = f"{case}.in.text_mask" in vectors
    text_mask = vectors[f"{case}.in.text_mask"] if masked else None
    grid_mask = vectors[f"{case}.in.vision_mask"] if masked else None
    c, w = op(q, k, v, vectors.metadata["topk"], grid_mask=grid_mask, text_mask=text_mask)
    wanted = vectors[f"{case}.mid.attn_mean"]
    if masked:
        wanted[~text_mask] = 0  # the original zeroes the context there, not the weights
    assert_close(w, wanted, relative=1e-12)
    assert_close(c, vectors[f"{case}.mid.context"], relative=1e-12)


@given(data=st.data(), size=sizes(max_grids=40), ties=st.booleans())
def test_every_way_to_select_takes_the_same_grids(data, size, ties):
    B, T, G, H, _, _ = size
    scores = data.draw(layouts(B, H, T, G, integers=ties))
    k = data.draw(st.integers(1, G))
    wanted = weights.largest_by_sort(scores, k)
    assert (wanted.sum(-1) == k).all()
    assert torch.equal(weights.largest_by_passes(scores, k), wanted)
    assert torch.equal(weights.largest_by_threshold(scores, k), wanted)


@BOTH
@pytest.mark.parametrize("G", [2, 5, 13, 64, 300])
@pytest.mark.parametrize("T", [1, 400])
def test_equal_scores_keep_the_first_grids_and_exactly_k_of_them(op, G, T):
    q, k, v = inputs(T=T, G=G, dtype=torch.float32)
    k = torch.ones_like(k)
    for top_k in {1, 2, G // 2 or 1, G - 1}:
        _, w = op(q, k, v, top_k)
        torch.testing.assert_close(w[..., :top_k], torch.full_like(w[..., :top_k], 1 / top_k))
        assert (w[..., top_k:] == 0).all()


@BOTH
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("G", "top_k"), [(5, 4), (13, 4), (64, 30), (300, 7)])
def test_exactly_k_weights_of_a_head_are_not_zero(op, renormalize, G, top_k):
    q, k, v = inputs(T=200, G=G, H=1)
    _, w = op(q, k, v, top_k, renormalize=renormalize)
    assert ((w > 0).sum(-1) == top_k).all()


@BOTH
def test_weights_sum_to_one_when_renormalised_and_to_less_when_truncated(op):
    q, k, v = inputs(G=9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 3:] = False
    for grid_mask in (None, mask):
        renormalised = op(q, k, v, 2, grid_mask=grid_mask)[1].sum(-1)
        torch.testing.assert_close(renormalised, torch.ones_like(renormalised))
        truncated = op(q, k, v, 2, grid_mask=grid_mask, renormalize=False)[1].sum(-1)
        assert (truncated < 0.999).all()
        assert (truncated > 0).all()


@BOTH
@pytest.mark.parametrize("renormalize", [True, False])
def test_k_of_at_least_the_kept_grids_is_the_plain_softmax(op, renormalize):
    q, k, v = inputs(G=8)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, :5] = False
    mask[1, 4:] = False
    plain = op(q, k, v, None, grid_mask=mask)
    for top_k in (0, 4, 5, 8, 100):
        for found, wanted in zip(op(q, k, v, top_k, grid_mask=mask, renormalize=renormalize), plain):
            torch.testing.assert_close(found, wanted, rtol=1e-13, atol=0)


@BOTH
@given(data=st.data(), size=sizes(), renormalize=st.booleans())
def test_permuting_grids_permutes_weights_and_leaves_the_context(op, data, size, renormalize):
    B, T, G, H, D_h, D = size
    q, k, v = data.draw(layouts(B, T, H, D_h)), data.draw(layouts(B, G, H, D_h)), data.draw(layouts(B, G, D))
    top_k = data.draw(st.integers(0, G))
    order = torch.tensor(data.draw(st.permutations(range(G))))
    c, w = op(q, k, v, top_k, renormalize=renormalize)
    c_permuted, w_permuted = op(q, k[:, order], v[:, order], top_k, renormalize=renormalize)
    torch.testing.assert_close(w_permuted, w[..., order])
    torch.testing.assert_close(c_permuted, c)


@BOTH
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_gradients_are_those_of_finite_differences(op, renormalize, top_k, dropout_p):
    q, k, v = (x.requires_grad_() for x in inputs(T=3, G=5, H=2, D_h=3, D=3))
    grid_mask = torch.tensor([[True, True, False, True, True], [False] * 5])
    text_mask = torch.tensor([[True, False, True], [True, True, False]])
    options = {"grid_mask": grid_mask, "text_mask": text_mask, "dropout_p": dropout_p, "seed": torch.tensor(3)}
    assert torch.autograd.gradcheck(lambda *x: op(*x, top_k, renormalize=renormalize, **options), (q, k, v))


@BOTH
@pytest.mark.parametrize("top_k", [0, 2])
def test_nothing_under_a_mask_is_read(op, top_k):
    """Neither the value nor a gradient sees it, were it NaN; a row without grids is zero and has zero gradients."""
    grid_mask = torch.tensor([[True, False, True, True, True, False], [False] * 6])
    text_mask = torch.tensor([[True, False, True, True], [True, True, True, False]])

    def run(fill):
        torch.manual_seed(1)
        q, k, v = inputs()
        q[~text_mask], k[~grid_mask], v[~grid_mask] = fill, fill, fill
        leaves = [x.requires_grad_() for x in (q, k, v)]
        c, w = op(*leaves, top_k, grid_mask=grid_mask, text_mask=text_mask)
        ((c * torch.randn_like(c)).sum() + (w * torch.randn_like(w)).sum()).backward()
        return [c, w, *(x.grad for x in leaves)]

    for poisoned, clean in zip(run(math.nan), run(0.0)):
        assert torch.equal(poisoned, clean)
    c, w, dq, dk, dv = run(math.nan)
    assert (w[~text_mask] == 0).all()
    assert (c[~text_mask] == 0).all()
    assert (w.transpose(1, 2)[~grid_mask] == 0).all()
    for tensor in (c, w, dq, dk, dv):
        assert (tensor[1] == 0).all()


@BOTH
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("scale", [1e4, -1e4, 1e25])
def test_extreme_scores_give_finite_weights_and_gradients(op, renormalize, top_k, scale):
    """1e4, and products that overflow to -inf."""
    q, k, v = inputs(dtype=torch.float32)
    q = q.abs() * scale
    k = -k.abs() * (scale if scale > 1e5 else 1)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    c, w = op(*leaves, top_k, renormalize=renormalize)
    (c.sum() + (w * torch.randn_like(w)).sum()).backward()
    for tensor in (c, w, *(x.grad for x in leaves)):
        assert torch.isfinite(tensor).all()
    if scale > 1e5:
        assert (w == 0).all()


@HALVES
@pytest.mark.parametrize("G", [5, 70])
def test_error_is_within_twice_the_references_in_the_same_dtype(dtype, G):
    tensors = [x.to(dtype) for x in inputs(T=60, G=G, D_h=16)]
    ours, definition = (partial(op, top_k=4) for op in (correlation_context, reference.correlation_context))
    assert_op_within_budget(ours, definition, tensors)


def test_float64_is_computed_in_float64():
    q, k, v = inputs(T=50, G=20)
    c, w = correlation_context(q, k, v, 4)
    wanted = loop_weights(q, k, 4, None, None, True).mean(1)
    assert_close(w, wanted, relative=1e-14)
    assert_close(c, wanted @ v, relative=1e-14)


@BOTH
def test_dropout_is_a_function_of_the_seed_and_keeps_the_mean(op):
    q, k, v = inputs(B=8, T=200, G=10, H=4, dtype=torch.float32)
    seed = torch.tensor(7)
    _, plain = op(q, k, v, None)
    _, dropped = op(q, k, v, None, dropout_p=0.3, seed=seed)
    assert torch.equal(dropped, op(q, k, v, None, dropout_p=0.3, seed=seed)[1])
    assert not torch.equal(dropped, op(q, k, v, None, dropout_p=0.3, seed=seed + 1)[1])
    assert abs(dropped.sum() / plain.sum() - 1) < 0.01
    assert abs((dropped == 0).float().mean() - 0.3**4) < 0.003


def test_dropout_without_a_seed_follows_torchs_generator():
    q, k, v = inputs()
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(correlation_context(q, k, v, dropout_p=0.5)[1])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_public_and_reference_drop_the_same_elements():
    q, k, v = inputs(T=100)
    seed = torch.tensor(2**62 + 12345)
    for found, wanted in zip(
        correlation_context(q, k, v, 3, dropout_p=0.5, seed=seed),
        reference.correlation_context(q, k, v, 3, dropout_p=0.5, seed=seed),
    ):
        torch.testing.assert_close(found, wanted)


def test_autocast_gives_its_dtype_and_float32_statistics():
    q, k, v = inputs(T=60, G=20, D_h=32, dtype=torch.float32)
    q, k, v = (x.bfloat16().float() for x in (q, k, v))
    with torch.autocast("cpu", torch.bfloat16):
        c, w = correlation_context(q, k, v, 4)
    assert c.dtype == w.dtype == torch.bfloat16
    c_plain, w_plain = correlation_context(q, k, v, 4)
    torch.testing.assert_close(c.float(), c_plain, rtol=2**-8, atol=2**-8 * c_plain.abs().max().item())
    torch.testing.assert_close(w.float(), w_plain, rtol=2**-8, atol=0)


def test_no_grids_at_all_weigh_nothing():
    q, k, v = inputs(G=0)
    c, w = correlation_context(q, k, v, 4)
    assert w.shape == (2, 4, 0)
    assert (c == 0).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"k": torch.randn(2, 6, 3, 4)},
            ValueError,
            r"k has shape \[2, 6, 3, 4\]; expected \[B G H D_h\] with .*D_h = 5",
        ),
        ({"v": torch.randn(2, 5, 7)}, ValueError, r"v has shape \[2, 5, 7\]; expected \[B G D\] with B = 2, G = 6"),
        ({"q": [1.0]}, TypeError, "q is of type list; expected a tensor"),
        ({"v": None}, TypeError, "v is None; expected a tensor"),
        ({"q": torch.ones(2, 4, 3, 5, dtype=torch.int64)}, TypeError, "q is int64; expected one of float32"),
        (
            {"grid_mask": torch.ones(2, 5, dtype=torch.bool)},
            ValueError,
            r"grid_mask has shape \[2, 5\]; expected \[B G\]",
        ),
        ({"text_mask": torch.ones(2, 4)}, TypeError, "text_mask is float32; expected one of bool"),
        ({"top_k": -1}, ValueError, "top_k is -1; expected at least 0"),
        ({"top_k": 2.0}, TypeError, "top_k is 2.0; expected an integer"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p is 1.0; expected 0 <= dropout_p < 1"),
        ({"dropout_p": 0.1, "seed": torch.tensor(1.0)}, TypeError, "seed is float32; expected one of int64"),
        ({"dropout_p": 0.1, "seed": 1}, TypeError, "seed is of type int; expected a tensor"),
        ({"v": torch.randn(2, 6, 7, device="meta")}, ValueError, "v is on meta; expected cpu"),
    ],
)
def test_argument_errors_name_the_argument(change, error, words):
    arguments = dict(zip("qkv", inputs(dtype=torch.float32))) | change
    with pytest.raises(error, match=f"correlation_context: {words}"):
        correlation_context(**arguments)
