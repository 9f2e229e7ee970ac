"""FiLM from the grid-side table: the public functions, and their Triton kernels as registered ops."""

import torch
from torch import Tensor

from ..autocast import to_autocast_dtype, without_autocast
from ..checks import REAL, check_dtypes, check_given, check_shapes
from ..common.grid_weights import check_grid_weights
from ..common.random import new_seed
from ..implementation import choose
from . import pytorch, reference

IMPLEMENTATIONS = {"reference": reference, "pytorch": pytorch}


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
    options = {"grid_mask": grid_mask, "text_mask": text_mask, "dropout_p": dropout_p, "seed": seed}
    check_grid_weights(op, q, k, top_k, **options)
    check_given(op, x=x, table=table, bias=bias, gate=gate, ln_weight=ln_weight, ln_bias=ln_bias)
    check_shapes(op, q=(q, "B T H D_h"), k=(k, "B G H D_h"), x=(x, "B T D"), table=(table, "B G two_D"))
    _check_film(op, x.shape[-1], table, bias, gate, ln_weight, ln_bias)
    check_dtypes(op, REAL, x=x)
    if dropout_p > 0 and seed is None:
        options["seed"] = new_seed(x.device)
    chosen = choose(op, x, q, k, table, bias, gate, ln_weight, ln_bias)
    x, q, k, table = to_autocast_dtype(x, q, k, table)
    tensors = (x, q, k, table, bias, gate, ln_weight, ln_bias)
    with without_autocast(x.device):
        if chosen == "triton":
            return _grounded_film(*tensors, eps, top_k or 0, renormalize=renormalize, **options)[:2]
        run = IMPLEMENTATIONS[chosen].grounded_film
        return run(*tensors, top_k=top_k, renormalize=renormalize, eps=eps, **options)


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


@torch.library.custom_op("firebolt_vl::grounded_film", mutates_args=())
def _grounded_film(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    top_k: int,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    renormalize: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """x_f, w, and mean and 1 / deviation of the rows of x, [2,B,T] float32."""
    from . import triton

    bias, ln_weight, ln_bias = (vector.contiguous() for vector in (bias, ln_weight, ln_bias))
    options = (top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    return triton.grounded_film(x, q, k, table, bias, gate, ln_weight, ln_bias, eps, *options)


@_grounded_film.register_fake
def _(x, q, k, *rest):
    statistics = x.new_empty(2, *x.shape[:2], dtype=torch.float32)
    return x.new_empty(x.shape), q.new_empty(*q.shape[:2], k.shape[1]), statistics


@torch.library.custom_op("firebolt_vl::grounded_film_backward", mutates_args=())
def _grounded_film_backward(
    dx_f: Tensor,
    dw: Tensor | None,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    statistics: Tensor,
    top_k: int,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    renormalize: bool,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from . import triton

    bias, ln_weight, ln_bias = (vector.contiguous() for vector in (bias, ln_weight, ln_bias))
    options = (top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    return triton.grounded_film_backward(dx_f, dw, x, q, k, table, bias, gate, ln_weight, ln_bias, statistics, *options)


@_grounded_film_backward.register_fake
def _(dx_f, dw, x, q, k, table, bias, gate, ln_weight, ln_bias, *rest):
    return _like(x, q, k, table, bias, gate, ln_weight, ln_bias)


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What gradients look like: contiguous, of the shape and dtype of their tensors."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


def _save_grounded(ctx, inputs, output) -> None:
    *tensors, _, top_k, grid_mask, text_mask, renormalize, dropout_p, seed = inputs
    ctx.save_for_backward(*tensors, output[2], grid_mask, text_mask, seed)
    ctx.options = top_k, renormalize, dropout_p
    ctx.set_materialize_grads(False)


def _backward_grounded(ctx, dx_f, dw, *unused):
    *tensors, grid_mask, text_mask, seed = ctx.saved_tensors
    top_k, renormalize, dropout_p = ctx.options
    if dx_f is None:
        dx_f = torch.zeros_like(tensors[0])
    options = (top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    return *_grounded_film_backward(dx_f, dw, *tensors, *options), None, *[None] * len(options)


_grounded_film.register_autograd(_backward_grounded, setup_context=_save_grounded)


@torch.library.custom_op("firebolt_vl::film_residual", mutates_args=())
def _film_residual(y: Tensor, x: Tensor, w: Tensor, table: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    from . import triton

    return triton.film_residual(y, x, w, table, bias.contiguous(), gate, None, None, 0.0)[0]


@_film_residual.register_fake
def _(y, x, *rest):
    return x.new_empty(x.shape)


@torch.library.custom_op("firebolt_vl::film_residual_norm", mutates_args=())
def _film_residual_norm(
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
    from . import triton

    bias, ln_weight, ln_bias = (vector.contiguous() for vector in (bias, ln_weight, ln_bias))
    return triton.film_residual(y, x, w, table, bias, gate, ln_weight, ln_bias, eps)


@_film_residual_norm.register_fake
def _(y, x, *rest):
    return x.new_empty(x.shape), y.new_empty(y.shape), x.new_empty(2, *x.shape[:2], dtype=torch.float32)


@torch.library.custom_op("firebolt_vl::film_residual_backward", mutates_args=())
def _film_residual_backward(
    dr: Tensor | None,
    dnormed: Tensor | None,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor | None,
    statistics: Tensor | None,
) -> list[Tensor]:
    from . import triton

    ln_weight = None if ln_weight is None else ln_weight.contiguous()
    bias = bias.contiguous()
    return list(triton.film_residual_backward(dr, dnormed, y, x, w, table, bias, gate, ln_weight, statistics))


@_film_residual_backward.register_fake
def _(dr, dnormed, y, x, w, table, bias, gate, ln_weight, statistics):
    return list(_like(y, x, w, table, bias, gate, *([] if ln_weight is None else [ln_weight, ln_weight])))


def _save_residual(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward_residual(ctx, dr):
    return tuple(_film_residual_backward(dr, None, *ctx.saved_tensors, None, None))


_film_residual.register_autograd(_backward_residual, setup_context=_save_residual)


def _save_residual_norm(ctx, inputs, output) -> None:
    *tensors, _, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)


def _backward_residual_norm(ctx, dr, dnormed, *unused):
    return *_film_residual_backward(dr, dnormed, *ctx.saved_tensors), None


_film_residual_norm.register_autograd(_backward_residual_norm, setup_context=_save_residual_norm)
