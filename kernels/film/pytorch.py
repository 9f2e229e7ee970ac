"""FiLM from the grid-side table, the gate folded into the table: two products with G rows, then one pass."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.dtypes import compute_dtype
from ..common.grid_weights import grid_weights, largest_of_few_or_many


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
    dtype = compute_dtype(x, q, k, table, bias, gate, ln_weight, ln_bias)
    w = grid_weights(
        q,
        k,
        top_k,
        grid_mask=grid_mask,
        text_mask=text_mask,
        renormalize=renormalize,
        dropout_p=dropout_p,
        seed=seed,
        dtype=dtype,
        largest=largest_of_few_or_many,
    )
    if grid_mask is not None:
        table = table.masked_fill(~grid_mask[:, :, None], 0)
    if text_mask is not None:
        x = x.masked_fill(~text_mask[:, :, None], 0)
    scale, shift = _scale_and_shift(w, table, bias, gate)
    normed = F.layer_norm(x.to(dtype), x.shape[-1:], ln_weight.to(dtype), ln_bias.to(dtype), eps)
    x_f = torch.addcmul(shift, normed, scale)
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
    dtype = compute_dtype(y, x, w, table, bias, gate, ln_weight, ln_bias)
    scale, shift = _scale_and_shift(w.to(dtype), table, bias, gate)
    r = torch.addcmul(shift, y.to(dtype), scale) + x.to(dtype)
    if ln_weight is None:
        return r.to(x.dtype)
    return r.to(x.dtype), F.layer_norm(r, r.shape[-1:], ln_weight.to(dtype), ln_bias.to(dtype), eps).to(y.dtype)


def _scale_and_shift(w: Tensor, table: Tensor, bias: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """1 + gate gamma and gate beta [B,T,D]: the gate and the 1 cost G x D and D operations instead of T x D."""
    gate = gate.to(w.dtype)
    table_gamma, table_beta = (gate * table.to(w.dtype)).chunk(2, dim=-1)
    bias_gamma, bias_beta = (gate * bias.to(w.dtype)).chunk(2, dim=-1)
    return torch.baddbmm(1 + bias_gamma, w, table_gamma), torch.baddbmm(bias_beta, w, table_beta)
