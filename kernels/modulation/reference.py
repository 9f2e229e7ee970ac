"""Token-grid correlation and FiLM: the reference implementations (docs/mathematics.md, 2 and 2a).

Shapes: B rows of T tokens and G grids, H heads of D_h numbers, D columns; masks [B,T] and [B,G], True = keep.
"""

import torch.nn.functional as F
from torch import Tensor

from ..common.dtypes import compute_dtype
from .selection import Selection
from .weights import grid_weights, largest_by_sort


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
    """c = w v with w = mean over heads of top-k softmax(q.k / sqrt(D_h))."""
    dtype = compute_dtype(q, k, v)
    selection = Selection(top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    w = grid_weights(q, k, selection, dtype=dtype, largest=largest_by_sort)
    if grid_mask is not None:
        v = v.masked_fill(~grid_mask[:, :, None], 0)
    return (w @ v.to(dtype)).to(v.dtype), w.to(q.dtype)


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
    """x_f = LN(x) (1 + gate gamma) + gate beta with [gamma, beta] = w table + bias; zero where text_mask is False.

    `channels_first` is about memory, of which a definition says nothing.
    """
    dtype = compute_dtype(x, q, k, table, bias, gate, ln_weight, ln_bias)
    selection = Selection(top_k, grid_mask, text_mask, renormalize, dropout_p, seed)
    w = grid_weights(q, k, selection, dtype=dtype, largest=largest_by_sort)
    if grid_mask is not None:
        table = table.masked_fill(~grid_mask[:, :, None], 0)
    if text_mask is not None:
        x = x.masked_fill(~text_mask[:, :, None], 0)
    gamma, beta = (w @ table.to(dtype) + bias.to(dtype)).chunk(2, dim=-1)
    normed = F.layer_norm(x.to(dtype), x.shape[-1:], ln_weight.to(dtype), ln_bias.to(dtype), eps)
    x_f = normed * (1 + gate.to(dtype) * gamma) + gate.to(dtype) * beta
    if text_mask is not None:
        x_f = x_f.masked_fill(~text_mask[:, :, None], 0)
    return x_f.to(x.dtype), w.to(q.dtype)


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
    """r = x + y (1 + gate gamma) + gate beta with [gamma, beta] = w table + bias; with a norm also LN(r)."""
    dtype = compute_dtype(y, x, w, table, bias, gate, ln_weight, ln_bias)
    gamma, beta = (w.to(dtype) @ table.to(dtype) + bias.to(dtype)).chunk(2, dim=-1)
    r = x.to(dtype) + y.to(dtype) * (1 + gate.to(dtype) * gamma) + gate.to(dtype) * beta
    if ln_weight is None or ln_bias is None:
        return r.to(x.dtype)
    return r.to(x.dtype), F.layer_norm(r, r.shape[-1:], ln_weight.to(dtype), ln_bias.to(dtype), eps).to(y.dtype)
