"""Token-grid correlation and FiLM: the public functions, and their Triton kernels as registered ops."""

from typing import Any

import torch
from torch import Tensor

from ..common.autocast import to_autocast_dtype, without_autocast
from ..common.checks import REAL, check_dtypes, check_given, check_shapes
from ..common.device import choose
from ..common.registered import Backward, register
from . import pytorch, reference
from .selection import Selection

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
            return _correlation_context(q, k, v, *selection)
        return IMPLEMENTATIONS[chosen].correlation_context(q, k, v, **selection._asdict())


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
            return _grounded_film(*tensors, eps, *selection)[:2]
        return IMPLEMENTATIONS[chosen].grounded_film(*tensors, eps=eps, **selection._asdict())


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
        raise ValueError(f"{op}: {missing} is None; wanted both ln_weight and ln_bias, or neither")
    _check_film(op, x.shape[-1], table, bias, gate, ln_weight, ln_bias)
    check_dtypes(op, REAL, y=y, x=x, w=w)
    chosen = choose(op, x, y, w, table, bias, gate, ln_weight, ln_bias)
    y, w, table = to_autocast_dtype(y, w, table)
    with without_autocast(x.device):
        if chosen != "triton":
            return IMPLEMENTATIONS[chosen].film_residual(y, x, w, table, bias, gate, ln_weight, ln_bias, eps=eps)
        if ln_weight is None:
            return _film_residual(y, x, w, table, bias, gate)
        return _film_residual_norm(y, x, w, table, bias, gate, ln_weight, ln_bias, eps)[:2]


def _check_film(op, width, table, bias, gate, ln_weight, ln_bias) -> None:
    check_shapes(
        op,
        table=(table, f"B G {2 * width}"),
        bias=(bias, f"{2 * width}"),
        ln_weight=(ln_weight, f"{width}"),
        ln_bias=(ln_bias, f"{width}"),
    )
    if gate.numel() != 1:
        raise ValueError(f"{op}: gate has shape {list(gate.shape)}; wanted one element")
    check_dtypes(op, REAL, table=table, bias=bias, gate=gate, ln_weight=ln_weight, ln_bias=ln_bias)


SELECTION = "SymInt top_k, Tensor? grid_mask, Tensor? text_mask, bool renormalize, float dropout_p, Tensor? seed"


def _run_context(q: Tensor, k: Tensor, v: Tensor, *selection: Any) -> tuple[Tensor, Tensor]:
    from . import triton_context

    return triton_context.correlation_context(q, k, v, Selection(*selection))


def _fake_context(q: Tensor, k: Tensor, v: Tensor, *selection: Any) -> tuple[Tensor, Tensor]:
    return v.new_empty(*q.shape[:2], v.shape[2]), q.new_empty(*q.shape[:2], k.shape[1])


def _differentiate_context(grads: list, q: Tensor, k: Tensor, v: Tensor, *selection: Any) -> tuple[Tensor, ...]:
    from . import triton_context

    return triton_context.correlation_context_backward(*grads, q, k, v, Selection(*selection))


_correlation_context = register(
    "correlation_context",
    f"(Tensor q, Tensor k, Tensor v, {SELECTION}) -> (Tensor, Tensor)",
    _run_context,
    _fake_context,
    Backward("correlation_context_backward", ("q", "k", "v"), _differentiate_context),
)


def _contiguous(*vectors: Tensor) -> list[Tensor]:
    """The small parameters as the kernels read them, without strides."""
    return [vector.contiguous() for vector in vectors]


def _run_grounded(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    *selection: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """x_f, w, and mean and 1 / deviation of the rows of x, [2,B,T] float32."""
    from . import triton_film

    bias, ln_weight, ln_bias = _contiguous(bias, ln_weight, ln_bias)
    return triton_film.grounded_film(x, q, k, table, bias, gate, ln_weight, ln_bias, eps, Selection(*selection))


def _fake_grounded(x: Tensor, q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(2, *x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), q.new_empty(*q.shape[:2], k.shape[1]), statistics


def _differentiate_grounded(
    grads: list,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    *selection: Any,
) -> tuple[Tensor, ...]:
    from . import triton_film

    dx_f, dw, statistics = grads
    bias, ln_weight, ln_bias = _contiguous(bias, ln_weight, ln_bias)
    return triton_film.grounded_film_backward(
        dx_f, dw, x, q, k, table, bias, gate, ln_weight, ln_bias, statistics, Selection(*selection)
    )


_grounded_film = register(
    "grounded_film",
    "(Tensor x, Tensor q, Tensor k, Tensor table, Tensor bias, Tensor gate, Tensor ln_weight, Tensor ln_bias, "
    f"float eps, {SELECTION}) -> (Tensor, Tensor, Tensor)",
    _run_grounded,
    _fake_grounded,
    Backward(
        "grounded_film_backward",
        ("x", "q", "k", "table", "bias", "gate", "ln_weight", "ln_bias"),
        _differentiate_grounded,
    ),
    kept=1,
)


def _run_residual(y: Tensor, x: Tensor, w: Tensor, table: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    from . import triton_residual

    return triton_residual.film_residual(y, x, w, table, bias.contiguous(), gate, None, None, 0.0)[0]


def _fake_residual(y: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _differentiate_residual(
    grads: list, y: Tensor, x: Tensor, w: Tensor, table: Tensor, bias: Tensor, gate: Tensor
) -> tuple[Tensor, ...]:
    from . import triton_residual

    return triton_residual.film_residual_backward(grads[0], None, y, x, w, table, bias.contiguous(), gate, None, None)


_film_residual = register(
    "film_residual",
    "(Tensor y, Tensor x, Tensor w, Tensor table, Tensor bias, Tensor gate) -> Tensor",
    _run_residual,
    _fake_residual,
    Backward("film_residual_backward", ("y", "x", "w", "table", "bias", "gate"), _differentiate_residual),
)


def _run_residual_norm(
    y: Tensor,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """r, LN(r), and mean and 1 / deviation of the rows of r, [2,B,T] float32."""
    from . import triton_residual

    bias, ln_weight, ln_bias = _contiguous(bias, ln_weight, ln_bias)
    return triton_residual.film_residual(y, x, w, table, bias, gate, ln_weight, ln_bias, eps)


def _fake_residual_norm(y: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape), x.new_empty(2, *x.shape[:2], dtype=torch.float32)


def _differentiate_residual_norm(
    grads: list,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
) -> tuple[Tensor, ...]:
    from . import triton_residual

    dr, dnormed, statistics = grads
    bias, ln_weight = _contiguous(bias, ln_weight)
    return triton_residual.film_residual_backward(dr, dnormed, y, x, w, table, bias, gate, ln_weight, statistics)


_film_residual_norm = register(
    "film_residual_norm",
    "(Tensor y, Tensor x, Tensor w, Tensor table, Tensor bias, Tensor gate, Tensor ln_weight, Tensor ln_bias, "
    "float eps) -> (Tensor, Tensor, Tensor)",
    _run_residual_norm,
    _fake_residual_norm,
    Backward(
        "film_residual_norm_backward",
        ("y", "x", "w", "table", "bias", "gate", "ln_weight", "ln_bias"),
        _differentiate_residual_norm,
    ),
    kept=1,
)
