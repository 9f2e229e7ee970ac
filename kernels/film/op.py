"""FiLM from the grid-side table: the public functions."""

from torch import Tensor

from ..common.autocast import to_autocast_dtype, without_autocast
from ..common.checks import REAL, check_dtypes, check_given, check_shapes
from ..common.device import choose
from ..common.grid_weights import check_grid_weights
from ..common.random import new_seed
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
    run = IMPLEMENTATIONS[choose(op, x)].grounded_film
    x, q, k, table = to_autocast_dtype(x, q, k, table)
    with without_autocast(x.device):
        return run(
            x, q, k, table, bias, gate, ln_weight, ln_bias, top_k=top_k, renormalize=renormalize, eps=eps, **options
        )


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
    run = IMPLEMENTATIONS[choose(op, x)].film_residual
    y, w, table = to_autocast_dtype(y, w, table)
    with without_autocast(x.device):
        return run(y, x, w, table, bias, gate, ln_weight, ln_bias, eps=eps)


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
