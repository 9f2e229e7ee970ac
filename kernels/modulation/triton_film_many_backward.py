"""The backward pass of FiLM of normalised tokens by many grids, in Triton (docs/mathematics.md, 2a).

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; x [B,T,D], q [B,T,H,DH], k [B,G,H,DH],
w [B,T,G], table [B,G,2D]. In kernels b is a number, t and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import strided
from ..common.triton_tiles import dot_precision, token_block
from ..launch import launch
from .selection import Selection
from .triton_modulation import Film, modulation, parameter_gradients, row_tile, store_column_sums, tiles
from .triton_rows import Norm, kept, normalised, store_rows, table_from_rows, weights_from_rows
from .triton_weights import grid_weights, grid_weights_backward


@triton.jit(do_not_specialize=["T", "G"])
def film_many_backward_kernel(
    dx_f,  # [B,T,D]
    x,  # [B,T,D]
    film,
    norm,
    text_mask,  # [B,T] or None
    dx_ptr,  # [B,T,D], contiguous
    columns_ptr,  # [programs,4,D] float32, contiguous: sums over the tokens of each
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row: sums over columns, then dx and sums over tokens."""
    b, t = token_block(T, BLOCK_T)
    token_kept = kept(text_mask, b, t, T)
    mean = tl.load(norm.mean + b * T + t, mask=t < T, other=0.0)
    rstd = tl.load(norm.rstd + b * T + t, mask=t < T, other=0.0)
    gate = tl.load(film.gate).to(tl.float32)

    sum_dn = tl.zeros([BLOCK_T], tl.float32)
    sum_dn_n = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, _ = modulation(film, None, b, t, d, T, G, D, BLOCK_G, PRECISION)
        e = row_tile(dx_f, b, t, d, token_kept, D)
        n, ln_weight, _ = normalised(row_tile(x, b, t, d, token_kept, D), mean, rstd, norm, d, D)
        dn = e * (1 + gate * gamma) * ln_weight[None, :]
        sum_dn += tl.sum(dn, 1)
        sum_dn_n += tl.sum(dn * n, 1)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, _ = modulation(film, None, b, t, d, T, G, D, BLOCK_G, PRECISION)
        e = row_tile(dx_f, b, t, d, token_kept, D)
        n, ln_weight, normed = normalised(row_tile(x, b, t, d, token_kept, D), mean, rstd, norm, d, D)
        dnormed = e * (1 + gate * gamma)
        dx = (dnormed * ln_weight[None, :] - (sum_dn / D)[:, None] - n * (sum_dn_n / D)[:, None]) * rstd[:, None]
        store_rows(dx_ptr, b, t, T, d, D, tl.where(token_kept[:, None], dx, 0.0))
        store_column_sums(columns_ptr, e, e * normed, dnormed * n, dnormed, d, D)


def many_grids_backward(
    dx_f: Tensor,
    dw: Tensor | None,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    norm: Norm,
    selection: Selection,
) -> tuple[Tensor, ...]:
    """Compute the gradients of x, q, k, table, bias, gate and the norm's vectors, in their dtypes; dw None is zero."""
    (B, T, D), G = x.shape, k.shape[1]
    grid_mask, text_mask = selection.grid_mask, selection.text_mask
    w = grid_weights(q, k, selection)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = tiles(T, G, 0, dx_f, x, table, backward=True)
    programs = B * triton.cdiv(T, sizes["BLOCK_T"])
    columns = torch.empty(programs, 4, D, dtype=torch.float32, device=x.device)
    launch(
        film_many_backward_kernel,
        (programs,),
        dx_f=strided(dx_f),
        x=strided(x),
        film=Film(strided(w), strided(table), strided(grid_mask), bias, gate),
        norm=norm,
        text_mask=strided(text_mask),
        dx_ptr=dx,
        columns_ptr=columns,
        T=T,
        G=G,
        D=D,
        PRECISION=dot_precision(film_many_backward_kernel, dx_f, x, table),
        **sizes,
    )
    dw = weights_from_rows(dx_f, table, grid_mask, text_mask, dw, x, norm, gate)
    dq, dk = grid_weights_backward(dw, q, k, selection)
    dtable = table_from_rows(w, dx_f, text_mask, x, norm)
    known = table if grid_mask is None else table.masked_fill(~grid_mask[:, :, None], 0)
    dtable, dbias, dgate, dln_weight, dln_bias = parameter_gradients(dtable, columns, known, bias, gate)
    return (
        dx,
        dq,
        dk,
        dtable.to(table.dtype),
        dbias,
        dgate,
        dln_weight.to(norm.weight.dtype),
        dln_bias.to(norm.bias.dtype),
    )
