"""Gradients of FiLM of normalised tokens by many grids, in Triton (docs/mathematics.md, 2a).

Shapes: B rows of T tokens and G grids, D columns; x, e [B,T,D], w [B,T,G], table [B,G,2D]; e is the gradient of x_f. In
kernels b is a number, t, grid and d the indices of a block.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import strided
from ..common.triton_tiles import block_of, dot_precision, token_block
from ..launch import launch
from .selection import Selection
from .triton_many_weights import dtype_of_weights, many_weights, many_weights_backward
from .triton_modulation import Film, parameter_gradients, row_tile
from .triton_row_gradients import table_from_rows, weights_from_rows
from .triton_rows import Norm, Weights, kept, load_statistics, product, sizes_of_product, store_rows
from .triton_selection import halves

NUMBERS_OF_A_TILE = 4096
# Of a block of gamma, with 4 warps: of 128 x 128, with 8, a variant in float16 spills.
MOST_NUMBERS = 128 * 64


class BlockSums(NamedTuple):
    """Sums over a block of columns, and over a block of tokens, float32, contiguous."""

    rows: Any  # [blocks of columns,2,B,T]: dn, dn n
    columns: Any  # [blocks of tokens,4,D]: e u, e, and the gradients of the norm's weight and bias


@triton.jit(do_not_specialize=["B", "T", "G"])
def many_film_backward_kernel(
    e,  # [B,T,D]
    x,  # [B,T,D]
    w,  # Weights
    film,  # its table [B,1,G,2D]
    norm,
    text_mask,  # [B,T] or None
    dn_ptr,  # [B,T,D] float32, contiguous: dn = e (1 + gate gamma) ln_weight
    sums,
    B,
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row and one of columns: gamma by one product, then dn and sums."""
    b, t = token_block(T, BLOCK_T)
    first = tl.program_id(1) * BLOCK_D
    column = first + tl.arange(0, BLOCK_D)
    acc = product(w, film.table, film.grid_mask, b, 0, t, column, column < D, T, G, BLOCK_G, PRECISION)
    token_kept = kept(text_mask, b, t, T)
    mean, rstd = load_statistics(norm, b, t, T, t < T)
    left, right = halves(acc)
    gammas = halves(left) + halves(right)
    sum_dn = tl.zeros([BLOCK_T], tl.float32)
    sum_dn_n = tl.zeros([BLOCK_T], tl.float32)
    for quarter in tl.static_range(4):  # one after the other, for want of registers
        d = first + quarter * (BLOCK_D // 4) + tl.arange(0, BLOCK_D // 4)
        gate = tl.load(film.gate).to(tl.float32)
        gamma = gammas[quarter] + tl.load(film.bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        e_tile = row_tile(e, b, t, d, token_kept, D)
        n = (row_tile(x, b, t, d, token_kept, D) - mean[:, None]) * rstd[:, None]
        ln_weight = tl.load(norm.weight + d, mask=d < D, other=0.0).to(tl.float32)
        ln_bias = tl.load(norm.bias + d, mask=d < D, other=0.0).to(tl.float32)
        dnormed = e_tile * (1 + gate * gamma)
        dn = dnormed * ln_weight[None, :]
        store_rows(dn_ptr, b, t, T, d, D, dn)
        sum_dn += tl.sum(dn, 1)
        sum_dn_n += tl.sum(dn * n, 1)
        row = sums.columns + tl.program_id(0).to(tl.int64) * 4 * D + d
        sum_e = tl.sum(e_tile, 0)
        tl.store(row, tl.sum(e_tile * n, 0) * ln_weight + sum_e * ln_bias, mask=d < D)
        tl.store(row + D, sum_e, mask=d < D)
        tl.store(row + 2 * D, tl.sum(dnormed * n, 0), mask=d < D)
        tl.store(row + 3 * D, tl.sum(dnormed, 0), mask=d < D)
    of_rows = sums.rows + (tl.program_id(1) * 2 * B + b) * T + t
    tl.store(of_rows, sum_dn, mask=t < T)
    tl.store(of_rows + B * T, sum_dn_n, mask=t < T)


@triton.jit(do_not_specialize=["blocks", "B", "T"])
def normalised_backward_kernel(
    dn_ptr,  # [B,T,D] float32, contiguous
    x,  # [B,T,D]
    norm,
    text_mask,  # [B,T] or None
    dx_ptr,  # [B,T,D], contiguous
    rows_ptr,  # [blocks,2,B,T]: sums of dn and of dn n over blocks of columns
    blocks,
    B,
    T,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Each program takes a few tokens of a row: dx = (dn - mean of dn - n mean of dn n) rstd, with n = LN(x) bare."""
    b, t = token_block(T, BLOCK_T)
    token_kept = kept(text_mask, b, t, T)
    mean, rstd = load_statistics(norm, b, t, T, t < T)
    sum_dn = tl.zeros([BLOCK_T], tl.float32)
    sum_dn_n = tl.zeros([BLOCK_T], tl.float32)
    for block in range(blocks):
        of_rows = rows_ptr + (block * 2 * B + b) * T + t
        sum_dn += tl.load(of_rows, mask=t < T, other=0.0)
        sum_dn_n += tl.load(of_rows + B * T, mask=t < T, other=0.0)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = token_kept[:, None] & (d < D)[None, :]
        dn = tl.load(dn_ptr + (b * T + t[:, None]) * D + d[None, :], mask=inside, other=0.0)
        n = (row_tile(x, b, t, d, token_kept, D) - mean[:, None]) * rstd[:, None]
        dx = (dn - (sum_dn / D)[:, None] - n * (sum_dn_n / D)[:, None]) * rstd[:, None]
        store_rows(dx_ptr, b, t, T, d, D, tl.where(token_kept[:, None], dx, 0.0))


def _token_gradients(
    e: Tensor, x: Tensor, w: Weights, film: Film, norm: Norm, text_mask: Tensor | None, sizes: dict[str, int]
) -> tuple[Tensor, Tensor]:
    """Compute dx in the dtype of x, and the sums of `BlockSums.columns`."""
    B, T, D = x.shape
    table = film.table.ptr
    blocks_of_t, blocks_of_d = B * triton.cdiv(T, sizes["BLOCK_T"]), triton.cdiv(D, sizes["BLOCK_D"])
    new = {"dtype": torch.float32, "device": x.device}
    dn = torch.empty(x.shape, **new)
    sums = BlockSums(torch.empty(blocks_of_d, 2, B, T, **new), torch.empty(blocks_of_t, 4, D, **new))
    launch(
        many_film_backward_kernel,
        (blocks_of_t, blocks_of_d),
        e=strided(e),
        x=strided(x),
        w=w,
        film=film,
        norm=norm,
        text_mask=strided(text_mask),
        dn_ptr=dn,
        sums=sums,
        B=B,
        T=T,
        G=table.shape[2],
        D=D,
        PRECISION=dot_precision(many_film_backward_kernel, table),
        **sizes,
    )
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_d = min(block_of(D), 1024)
    block_t = max(1, NUMBERS_OF_A_TILE // block_d)
    launch(
        normalised_backward_kernel,
        (B * triton.cdiv(T, block_t),),
        dn_ptr=dn,
        x=strided(x),
        norm=norm,
        text_mask=strided(text_mask),
        dx_ptr=dx,
        rows_ptr=sums.rows,
        blocks=blocks_of_d,
        B=B,
        T=T,
        D=D,
        BLOCK_T=block_t,
        BLOCK_D=block_d,
        num_warps=4,
    )
    return dx, sums.columns


def many_film_backward(
    e: Tensor,
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
    """Compute the gradients of x, q, k, table, bias, gate, ln_weight and ln_bias, in their dtypes; dw None is zero."""
    B, T, D = x.shape
    grid_mask, text_mask = selection.grid_mask, selection.text_mask
    w, rest = many_weights(q, k, selection, dtype_of_weights(q, table))
    film = Film(None, strided(table[:, None]), strided(grid_mask), bias, gate)
    sizes = sizes_of_product(B, T, min(D, 128), w, table)
    if sizes["BLOCK_T"] * sizes["BLOCK_D"] > MOST_NUMBERS:
        sizes |= {"BLOCK_D": MOST_NUMBERS // sizes["BLOCK_T"], "num_warps": 4}
    dx, columns = _token_gradients(e, x, Weights.of(w, rest), film, norm, text_mask, sizes)
    dw = weights_from_rows(e, table, grid_mask, text_mask, dw, x, norm, gate)
    dq, dk = many_weights_backward(dw, q, k, selection)
    dtable = table_from_rows(w, e, table.shape[1], text_mask, x, norm, rest)
    known = table if grid_mask is None else table.masked_fill(~grid_mask[:, :, None], 0)
    dtable, dbias, dgate, dln_weight, dln_bias = parameter_gradients(dtable, columns, known, bias, gate)
    return (
        *(dx, dq, dk, dtable.to(table.dtype), dbias, dgate),
        dln_weight.to(norm.weight.dtype),
        dln_bias.to(norm.bias.dtype),
    )
