"""Token-grid correlation: the public function, and its Triton kernels as a registered op."""

import torch
from torch import Tensor

from ..autocast import to_autocast_dtype, without_autocast
from ..checks import REAL, check_dtypes, check_given, check_shapes
from ..common.grid_weights import check_grid_weights
from ..common.random import new_seed
from ..implementation import choose
from . import pytorch, reference

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


def correlation_context(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top_k: int | None = None,
    *,
    grid_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    renormalize: bool = True,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What each token sees of the grids, and how much it weighs each of them.

        s = q.k / sqrt(D_h)                            [B,H,T,G]
        a = top-k softmax of s over G
        w = mean over heads of dropout(a)              [B,T,G]
        c = w v                                        [B,T,D]

    Arguments:
        q: queries [B,T,H,D_h].
        k: keys [B,G,H,D_h].
        v: values [B,G,D], shared by the heads.
        top_k: how many grids each head of a token keeps; exactly so many, equal scores in favour of the lower index.
            Equal keys have equal scores in the kernels; in PyTorch's products on a CPU they may come out a rounding
            apart, and then the larger counts. None, 0 or at least the number of kept grids: plain softmax.
        grid_mask: [B,G] bool, True = keep. A row without a kept grid has w = 0 and c = 0.
        text_mask: [B,T] bool, True = keep. Other tokens have w = 0 and c = 0. Nothing under a mask is read.
        renormalize: True: softmax over the kept scores alone (rows of a sum to 1). False: softmax over all grids, then
            all but the top_k are zeroed (rows sum to less than 1).
        dropout_p, seed: dropout of a; the element [b,h,t,g] is dropped as (seed, its index in C order) says
            (`common/random.py`). seed: int64 tensor of one element on the device; drawn from torch's generator if None.

    Returns: c in the dtype of v, w in the dtype of q (under autocast both in its dtype). Half precision is computed in
    float32.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape, device or number.

    Source: Firebolt-VL (arXiv 2604.04579), token-grid correlation of the cross-modal modulator.
    """
    op = "correlation_context"
    options = {"grid_mask": grid_mask, "text_mask": text_mask, "dropout_p": dropout_p, "seed": seed}
    check_grid_weights(op, q, k, top_k, **options)
    check_given(op, v=v)
    check_shapes(op, k=(k, "B G H D_h"), v=(v, "B G D"))
    check_dtypes(op, REAL, v=v)
    if dropout_p > 0 and seed is None:
        options["seed"] = new_seed(q.device)
    chosen = choose(op, q, k, v)
    q, k, v = to_autocast_dtype(q, k, v)
    with without_autocast(q.device):
        if chosen == "triton":
            return _correlation_context(q, k, v, top_k or 0, renormalize=renormalize, **options)
        return IMPLEMENTATIONS[chosen].correlation_context(q, k, v, top_k, renormalize=renormalize, **options)


@torch.library.custom_op("firebolt_vl::correlation_context", mutates_args=())
def _correlation_context(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top_k: int,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    renormalize: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from . import triton

    return triton.correlation_context(q, k, v, top_k, grid_mask, text_mask, renormalize, dropout_p, seed)


@_correlation_context.register_fake
def _(q, k, v, *options):
    return v.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(*q.shape[:2], k.shape[1])


@torch.library.custom_op("firebolt_vl::correlation_context_backward", mutates_args=())
def _correlation_context_backward(
    dc: Tensor,
    dw: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top_k: int,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    renormalize: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import triton

    options = (top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    return triton.correlation_context_backward(dc, dw, q, k, v, *options)


@_correlation_context_backward.register_fake
def _(dc, dw, q, k, v, *options):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (q, k, v))


def _save(ctx, inputs, output) -> None:
    q, k, v, top_k, grid_mask, text_mask, renormalize, dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, grid_mask, text_mask, seed)
    ctx.options = top_k, renormalize, dropout_p
    ctx.set_materialize_grads(False)


def _backward(ctx, dc, dw):
    q, k, v, grid_mask, text_mask, seed = ctx.saved_tensors
    top_k, renormalize, dropout_p = ctx.options
    if dc is None:
        dc = v.new_zeros(*q.shape[:2], v.shape[2])
    options = (top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    return *_correlation_context_backward(dc, dw, q, k, v, *options), *[None] * len(options)


_correlation_context.register_autograd(_backward, setup_context=_save)
