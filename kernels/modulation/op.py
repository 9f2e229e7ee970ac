"""Token-grid correlation and FiLM: the public functions."""

from torch import Tensor

from ..autocast import to_autocast_dtype, without_autocast
from ..checks import REAL, check_dtypes, check_given, check_shapes
from ..implementation import choose
from ..replay import replayed
from . import pytorch, reference, registered_ops
from .selection import Selection

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


@replayed
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
    """Compute each token's context from the grids, and its weights for them.

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
    check_given(op, q=q, k=k)
    selection = Selection(top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    selection.check(op, q, k)
    check_given(op, v=v)
    check_shapes(op, k=(k, "B G H D_h"), v=(v, "B G D"))
    check_dtypes(op, REAL, v=v)
    selection = selection.settled(q.device)
    chosen = choose(op, q, k, v)
    q, k, v = to_autocast_dtype(q, k, v)
    with without_autocast(q.device):
        if chosen == "triton":
            return registered_ops.correlation_context(q, k, v, *selection)
        return IMPLEMENTATIONS[chosen].correlation_context(q, k, v, **selection._asdict())


@replayed
def grounded_film(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    *,
    top_k: int | None = None,
    grid_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    renormalize: bool = True,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    eps: float = 1e-5,
    channels_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """Correlate tokens with grids, normalise the tokens and modulate them by what they see.

        w = mean over heads of dropout(top-k softmax(q.k / sqrt(D_h)))        [B,T,G]
        [gamma, beta] = w table + bias                                        [B,T,2D]
        x_f = LN(x) (1 + gate gamma) + gate beta                              [B,T,D]

    With table = v W^T (v the grids' values, W and bias those of the FiLM's linear map) this is FiLM by the context
    c = w v, exactly: W c + bias = w (v W^T) + bias.

    Arguments:
        x: tokens [B,T,D].
        q, k: queries [B,T,H,D_h] and keys [B,G,H,D_h].
        table: [B,G,2D], gamma's half first.
        bias: [2D], added once, outside of the weighted sum.
        gate: one element.
        ln_weight, ln_bias, eps: LayerNorm over D.
        top_k, grid_mask, text_mask, renormalize, dropout_p, seed: as in `correlation_context`. A token outside of
            text_mask has x_f = 0 and w = 0; one that sees no grid (all masked) is modulated by the bias alone.
        channels_first: whether the kernels on a GPU lay x_f out in memory as [B,D,T], as convolutions and scans of
            `x_f.mT` read it best. The numbers are the same.

    Returns: x_f in the dtype of x, w in the dtype of q (under autocast both in its dtype). Half precision is computed
    in float32.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape, device or number.

    Source: Firebolt-VL (arXiv 2604.04579), cross-modal modulator; FiLM: Perez et al. 2018 (arXiv 1709.07871).
    """
    op = "grounded_film"
    check_given(op, q=q, k=k)
    selection = Selection(top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    selection.check(op, q, k)
    check_given(op, x=x, table=table, bias=bias, gate=gate, ln_weight=ln_weight, ln_bias=ln_bias)
    check_shapes(op, q=(q, "B T H D_h"), k=(k, "B G H D_h"), x=(x, "B T D"), table=(table, "B G two_D"))
    _check_film(op, x.shape[-1], table, bias, gate, ln_weight, ln_bias)
    check_dtypes(op, REAL, x=x)
    selection = selection.settled(x.device)
    chosen = choose(op, x, q, k, table, bias, gate, ln_weight, ln_bias)
    x, q, k, table = to_autocast_dtype(x, q, k, table)
    tensors = (x, q, k, table, bias, gate, ln_weight, ln_bias)
    with without_autocast(x.device):
        if chosen == "triton":
            return registered_ops.grounded_film(*tensors, eps, channels_first, *selection)[:2]
        return IMPLEMENTATIONS[chosen].grounded_film(*tensors, eps=eps, **selection._asdict())


@replayed
def film_residual(
    y: Tensor,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor | None = None,
    ln_bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
) -> Tensor | tuple[Tensor, Tensor]:
    """Modulate by what the tokens see, add the residual and, if a norm is given, normalise the sum.

        [gamma, beta] = w table + bias                   [B,T,2D]
        r = x + y (1 + gate gamma) + gate beta           [B,T,D]

    Arguments:
        y: what is modulated [B,T,D].
        x: the residual stream [B,T,D].
        w: weights of the grids [B,T,G], as `grounded_film` returns them.
        table: [B,G,2D], gamma's half first; bias: [2D]; gate: one element.
        ln_weight, ln_bias, eps: LayerNorm over D, or None for none.

    Returns: r in the dtype of x, or (r, LN(r)) with LN(r) in the dtype of y (under autocast: in its dtype). Half
    precision is computed in float32; LN sees r before it is rounded.

    Raises TypeError for a wrong dtype and ValueError for a wrong shape or device.

    Source: Firebolt-VL (arXiv 2604.04579), cross-modal modulator; FiLM: Perez et al. 2018 (arXiv 1709.07871).
    """
    op = "film_residual"
    check_given(op, y=y, x=x, w=w, table=table, bias=bias, gate=gate)
    check_shapes(op, y=(y, "B T D"), x=(x, "B T D"), w=(w, "B T G"), table=(table, "B G two_D"))
    if (ln_weight is None) != (ln_bias is None):
        missing = "ln_weight" if ln_weight is None else "ln_bias"
        raise ValueError(f"{op}: {missing} is None; expected both ln_weight and ln_bias, or neither")
    _check_film(op, x.shape[-1], table, bias, gate, ln_weight, ln_bias)
    check_dtypes(op, REAL, y=y, x=x, w=w)
    chosen = choose(op, x, y, w, table, bias, gate, ln_weight, ln_bias)
    y, w, table = to_autocast_dtype(y, w, table)
    with without_autocast(x.device):
        if chosen != "triton":
            return IMPLEMENTATIONS[chosen].film_residual(y, x, w, table, bias, gate, ln_weight, ln_bias, eps=eps)
        if ln_weight is None:
            return registered_ops.film_residual(y, x, w, table, bias, gate)
        return registered_ops.film_residual_norm(y, x, w, table, bias, gate, ln_weight, ln_bias, eps)[:2]


def _check_film(op, width, table, bias, gate, ln_weight, ln_bias) -> None:
    check_shapes(
        op,
        table=(table, f"B G {2 * width}"),
        bias=(bias, f"{2 * width}"),
        ln_weight=(ln_weight, f"{width}"),
        ln_bias=(ln_bias, f"{width}"),
    )
    if gate.numel() != 1:
        raise ValueError(f"{op}: gate has shape {list(gate.shape)}; expected one element")
    check_dtypes(op, REAL, table=table, bias=bias, gate=gate, ln_weight=ln_weight, ln_bias=ln_bias)
