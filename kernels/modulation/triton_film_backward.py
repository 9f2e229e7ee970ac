"""The backward pass of FiLM of normalised tokens, in Triton (docs/mathematics.md, 2a).

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; x [B,T,D], q [B,T,H,DH], k [B,G,H,DH],
w [B,T,G], table [B,G,2D]. In kernels b is a number, t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import strided
from ..common.triton_tiles import dot, dot_precision, token_block
from ..launch import launch
from .selection import Selection
from .triton_many_film_backward import many_film_backward
from .triton_modulation import (
    MOST_GRIDS_IN_PARTS,
    Film,
    modulation,
    new_sums,
    parameter_gradients,
    row_tile,
    store_column_sums,
    store_table_sums,
    table_tiles,
    tiles,
    weights_tile,
)
from .triton_rows import Norm, kept, normalised, store_rows, table_from_rows, weights_from_rows
from .triton_weights import MOST_GRIDS_IN_REGISTERS, grid_weights, grid_weights_backward


@triton.jit(do_not_specialize=["T", "G"])
def grounded_film_backward_kernel(
    dx_f,  # [B,T,D]
    dw_in,  # [B,T,G] or None: the gradient of w itself
    x,  # [B,T,D]
    film,
    norm,
    text_mask,  # [B,T] or None
    dx_ptr,  # [B,T,D], contiguous
    dw_ptr,  # [B,T,G] float32, contiguous; None where sums.table is
    sums,
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row: sums over columns, dw among them, then dx and sums over tokens."""
    b, t = token_block(T, BLOCK_T)
    grid = tl.arange(0, BLOCK_G)
    token_kept = kept(text_mask, b, t, T)
    mean = tl.load(norm.mean + b * T + t, mask=t < T, other=0.0)
    rstd = tl.load(norm.rstd + b * T + t, mask=t < T, other=0.0)
    gate = tl.load(film.gate).to(tl.float32)
    w = None
    dw = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)
    if dw_ptr is not None:
        w = weights_tile(film.w, b, t, grid, T, G)

    sum_dn = tl.zeros([BLOCK_T], tl.float32)
    sum_dn_n = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, _ = modulation(film, w, b, t, d, T, G, D, BLOCK_G, PRECISION)
        e = row_tile(dx_f, b, t, d, token_kept, D)
        n, ln_weight, normed = normalised(row_tile(x, b, t, d, token_kept, D), mean, rstd, norm, d, D)
        dn = e * (1 + gate * gamma) * ln_weight[None, :]
        sum_dn += tl.sum(dn, 1)
        sum_dn_n += tl.sum(dn * n, 1)
        if dw_ptr is not None:
            gamma_tile, beta_tile = table_tiles(film, b, grid, d, G, D)
            dw += dot(e * normed, tl.trans(gamma_tile), PRECISION) + dot(e, tl.trans(beta_tile), PRECISION)
    if dw_ptr is not None:
        dw *= gate
        if dw_in is not None:
            dw += weights_tile(dw_in, b, t, grid, T, G).to(tl.float32)
        store_rows(dw_ptr, b, t, T, grid, G, dw)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, _ = modulation(film, w, b, t, d, T, G, D, BLOCK_G, PRECISION)
        e = row_tile(dx_f, b, t, d, token_kept, D)
        n, ln_weight, normed = normalised(row_tile(x, b, t, d, token_kept, D), mean, rstd, norm, d, D)
        dnormed = e * (1 + gate * gamma)
        dx = (dnormed * ln_weight[None, :] - (sum_dn / D)[:, None] - n * (sum_dn_n / D)[:, None]) * rstd[:, None]
        store_rows(dx_ptr, b, t, T, d, D, tl.where(token_kept[:, None], dx, 0.0))
        store_column_sums(sums, e, e * normed, dnormed * n, dnormed, d, D)
        if sums.table is not None:
            store_table_sums(sums, w, e, e * normed, d, G, D, BLOCK_G, PRECISION)


def grounded_film_backward(
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
    selection: Selection,
) -> tuple[Tensor, ...]:
    """Compute the gradients of x, q, k, table, bias, gate, ln_weight and ln_bias, in their dtypes; dw None is zero."""
    (B, T, D), G = x.shape, k.shape[1]
    norm = Norm(ln_weight, ln_bias, *statistics)
    if G > MOST_GRIDS_IN_REGISTERS:
        return many_film_backward(dx_f, dw, x, q, k, table, bias, gate, norm, selection)
    grid_mask, text_mask = selection.grid_mask, selection.text_mask
    w = grid_weights(q, k, selection)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = tiles(T, G, MOST_GRIDS_IN_PARTS, dx_f, x, table, backward=True)
    programs = B * triton.cdiv(T, sizes["BLOCK_T"])
    sums, dw_total = new_sums(programs, w, table)
    launch(
        grounded_film_backward_kernel,
        (programs,),
        dx_f=strided(dx_f),
        dw_in=strided(dw),
        x=strided(x),
        film=Film(strided(w), strided(table), strided(grid_mask), bias, gate),
        norm=norm,
        text_mask=strided(text_mask),
        dx_ptr=dx,
        dw_ptr=dw_total,
        sums=sums,
        T=T,
        G=G,
        D=D,
        PRECISION=dot_precision(grounded_film_backward_kernel, dx_f, x, table),
        **sizes,
    )
    if dw_total is None:
        dw_total = weights_from_rows(dx_f, table, grid_mask, text_mask, dw, x, norm, gate)
        dtable = table_from_rows(w, dx_f, text_mask, x, norm)
    else:
        dtable = sums.table.view(B, -1, G, 2 * D).sum(1)
    dq, dk = grid_weights_backward(dw_total, q, k, selection)
    known = table if grid_mask is None else table.masked_fill(~grid_mask[:, :, None], 0)
    dtable, dbias, dgate, dln_weight, dln_bias = parameter_gradients(dtable, sums.columns, known, bias, gate)
    return (
        dx,
        dq,
        dk,
        dtable.to(table.dtype),
        dbias,
        dgate,
        dln_weight.to(ln_weight.dtype),
        dln_bias.to(ln_bias.dtype),
    )
