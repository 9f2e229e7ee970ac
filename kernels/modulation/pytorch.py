"""Token-grid correlation and FiLM with the quicker exact selection (docs/mathematics.md, 2b).

The gate is folded into the table: two products with G rows, then one pass.

Shapes: B rows of T tokens and G grids, H heads of D_h numbers, D columns; masks [B,T] and [B,G], True = keep.
`options` are the fields of `Selection`, as arguments by name.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.dtypes import compute_dtype
from .selection import Selection
from .weights import INFINITY, grid_weights, largest_of_few_or_many, top_k_softmax


def correlation_context(
    q: Tensor, k: Tensor, v: Tensor, top_k: int | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """c = w v with w = mean over heads of top-k softmax(q.k / sqrt(D_h))."""
    dtype = compute_dtype(q, k, v)
    selection = Selection(top_k, **options)
    w = grid_weights(q, k, selection, dtype=dtype, largest=largest_of_few_or_many)
    v = _without_masked(v, selection.grid_mask)
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
    eps: float = 1e-5,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """x_f = LN(x) (1 + gate gamma) + gate beta with [gamma, beta] = w table + bias; zero where text_mask is False."""
    dtype = compute_dtype(x, q, k, table, bias, gate, ln_weight, ln_bias)
    selection = Selection(**options)
    w = grid_weights(q, k, selection, dtype=dtype, largest=largest_of_few_or_many)
    table = _without_masked(table, selection.grid_mask)
    x = _without_masked(x, selection.text_mask)
    scale, shift = _scale_and_shift(w, table, bias, gate)
    normed = F.layer_norm(x.to(dtype), x.shape[-1:], ln_weight.to(dtype), ln_bias.to(dtype), eps)
    x_f = _without_masked(torch.addcmul(shift, normed, scale), selection.text_mask)
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
    scale, shift = _scale_and_shift(w.to(dtype), table, bias, gate)
    r = torch.addcmul(shift, y.to(dtype), scale) + x.to(dtype)
    if ln_weight is None or ln_bias is None:
        return r.to(x.dtype)
    return r.to(x.dtype), F.layer_norm(r, r.shape[-1:], ln_weight.to(dtype), ln_bias.to(dtype), eps).to(y.dtype)


def weights_of_few_tokens(q: Tensor, k: Tensor, selection: Selection, dtype: torch.dtype) -> Tensor:
    """Compute w [B,T,G] as `grid_weights` does, in the fewest calls: of all tokens, without dropout and gradients."""
    scores = (q.to(dtype) * (1 / math.sqrt(q.shape[-1]))).transpose(1, 2) @ k.to(dtype).permute(0, 2, 3, 1)
    if selection.grid_mask is not None:
        scores = scores.masked_fill(~selection.grid_mask[:, None, None], -INFINITY)  # [B,H,T,G]
    return top_k_softmax(scores, selection.top_k, selection.renormalize, largest_of_few_or_many).mean(1)


def film_of_few_tokens(w: Tensor, table: Tensor, bias: Tensor, gate: Tensor) -> Tensor:
    """Compute gate (w table + bias) in the dtype of w: several FiLMs at once, their tables and biases side by side."""
    return torch.baddbmm(bias.to(w.dtype), w, table.to(w.dtype)).mul_(gate.to(w.dtype))


def _without_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B,N,...] with zeros where `mask` [B,N] is False."""
    return x if mask is None else x.masked_fill(~mask[:, :, None], 0)


def _scale_and_shift(w: Tensor, table: Tensor, bias: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """1 + gate gamma and gate beta [B,T,D]: the gate and the 1 cost G x D and D operations instead of T x D."""
    gate = gate.to(w.dtype)
    table_gamma, table_beta = (gate * table.to(w.dtype)).chunk(2, dim=-1)
    bias_gamma, bias_beta = (gate * bias.to(w.dtype)).chunk(2, dim=-1)
    return torch.baddbmm(1 + bias_gamma, w, table_gamma), torch.baddbmm(bias_beta, w, table_beta)
