"""The backward pass of FiLM by known weights with the residual and its LayerNorm, in Triton (docs/mathematics.md, 2a).

With r = x + y f + gate beta, f = 1 + gate gamma, n = (r - mean) / deviation and dn = dnormed weight, the gradient of r
is e = dr + (dn - mean dn - n mean(dn n)) / deviation with means over columns, dy = e f and dx = e. Three kernels: sums
over columns, where there is a norm; dy and dx, with sums over tokens, and dw; the last sums.

Shapes: B rows of T tokens and G grids, D columns; y, x, r [B,T,D], w [B,T,G], table [B,G,2D]. In kernels b is a number,
t, grid and d the indices of a block.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import HALF, dot_precision, slots_of, token_block
from ..launch import launch
from .triton_finish import finish
from .triton_gradients import (
    BLOCK_D,
    BLOCK_G,
    BLOCK_T,
    MOST_GRIDS,
    RowSums,
    TokenSums,
    columns,
    dot_terms,
    new_token_sums,
    parts_of_columns,
    row_means,
    slot_of_tokens,
    store_token_sums,
    table_tile,
    vector,
)
from .triton_modulation import Film, weights_tile
from .triton_residual_many_backward import many_grids_residual_backward
from .triton_rows import Norm


class _Written(NamedTuple):
    """Gradients that are written token by token, contiguous."""

    dy: Any  # [B,T,D]
    dx: Any  # [B,T,D]
    dw: Any  # [column blocks,B,T,G] float32: of each block of columns


@triton.jit
def _modulation(film, w, gamma, beta, d, exists, D: tl.constexpr, PRECISION: tl.constexpr):
    """1 + gate gamma and gate beta [BLOCK_T, BLOCK_D], from the tiles of the table."""
    gate = tl.load(film.gate).to(tl.float32)
    zeros = tl.zeros([w.shape[0], d.shape[0]], tl.float32)
    factor = gate * (dot_terms(w, gamma, zeros, PRECISION) + vector(film.bias, d, exists)[None, :]) + 1
    return factor, gate * (dot_terms(w, beta, zeros, PRECISION) + vector(film.bias + D, d, exists)[None, :])


@triton.jit(do_not_specialize=["T", "G"])
def residual_rows_kernel(
    dnormed,  # [B,T,D]
    y,  # [B,T,D]
    x,  # [B,T,D]
    film,
    norm,
    rows,  # RowSums, of which the means are written
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row and a part of the columns: sums over columns."""
    b, t = token_block(T, BLOCK_T)
    part = tl.program_id(1)
    grid = tl.arange(0, BLOCK_G)
    row = b * T + t
    w = weights_tile(film.w, b, t, grid, T, G)
    mean = tl.load(norm.mean + row, mask=t < T, other=0.0)[:, None]
    rstd = tl.load(norm.rstd + row, mask=t < T, other=0.0)[:, None]
    dn_sums = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    dn_n_sums = dn_sums
    BLOCKS: tl.constexpr = tl.cdiv(D, PARTS * BLOCK_D)
    for block in range(BLOCKS):
        d, exists = columns((part * BLOCKS + block) * BLOCK_D, D, PARTS * BLOCK_D, BLOCK_D)
        index, inside = (b, t[:, None], d[None, :]), (t < T)[:, None] & exists[None, :]
        gamma, beta = table_tile(film, b, grid, d, exists, G), table_tile(film, b, grid, D + d, exists, G)
        factor, shift = _modulation(film, w, gamma, beta, d, exists, D, PRECISION)
        r = load(x, index, inside).to(tl.float32) + load(y, index, inside).to(tl.float32) * factor + shift
        dn = load(dnormed, index, inside).to(tl.float32) * vector(norm.weight, d, exists)[None, :]
        dn_sums += dn
        dn_n_sums += dn * (r - mean) * rstd
    row = row * PARTS + part
    tl.store(rows.dn + row, tl.sum(dn_sums, 1), mask=t < T)
    tl.store(rows.dn_n + row, tl.sum(dn_n_sums, 1), mask=t < T)


@triton.jit(do_not_specialize=["B", "T", "G", "blocks_per_slot"])
def residual_columns_kernel(
    dr,  # [B,T,D]
    dnormed,  # [B,T,D] or None: no norm, or none that counts
    y,  # [B,T,D]
    x,  # [B,T,D]
    film,
    norm,  # or None
    rows,  # RowSums, or None where dnormed is
    written,
    sums,  # TokenSums, written
    B,
    T,
    G,
    blocks_per_slot,  # how many blocks of tokens a program walks through
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a slot of the tokens of a row and a block of columns: dy, dx, dw, and sums over the tokens."""
    b, first = slot_of_tokens(T, BLOCK_T, blocks_per_slot)
    d, exists = columns(tl.program_id(1) * BLOCK_D, D, BLOCK_D, BLOCK_D)
    grid = tl.arange(0, BLOCK_G)
    gate = tl.load(film.gate).to(tl.float32)
    gamma, beta = table_tile(film, b, grid, d, exists, G), table_tile(film, b, grid, D + d, exists, G)
    dw_ptr = written.dw + tl.program_id(1).to(tl.int64) * B * T * G

    ey_sums = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    e_sums = ey_sums
    dln_weight = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    dln_bias = dln_weight
    for block in range(blocks_per_slot):
        t = first + block * BLOCK_T + tl.arange(0, BLOCK_T)
        row = b * T + t
        index, inside = (b, t[:, None], d[None, :]), (t < T)[:, None] & exists[None, :]
        w = weights_tile(film.w, b, t, grid, T, G)
        factor, shift = _modulation(film, w, gamma, beta, d, exists, D, PRECISION)
        e = load(dr, index, inside).to(tl.float32)
        y_tile = load(y, index, inside).to(tl.float32)
        if dnormed is not None:
            mean = tl.load(norm.mean + row, mask=t < T, other=0.0)[:, None]
            rstd = tl.load(norm.rstd + row, mask=t < T, other=0.0)[:, None]
            dn_mean, dn_n_mean = row_means(rows, row, t < T, D)
            n = (load(x, index, inside).to(tl.float32) + y_tile * factor + shift - mean) * rstd
            dnormed_tile = load(dnormed, index, inside).to(tl.float32)
            dln_bias += dnormed_tile
            dln_weight += dnormed_tile * n
            dn = dnormed_tile * vector(norm.weight, d, exists)[None, :]
            e += tl.where(inside, (dn - dn_mean[:, None] - n * dn_n_mean[:, None]) * rstd, 0.0)
        tile = row[:, None] * D + d[None, :]
        tl.store(written.dy + tile, e * factor, mask=inside)
        tl.store(written.dx + tile, e, mask=inside)
        ey = e * y_tile
        dw = dot_terms(ey, tl.trans(gamma), tl.zeros([BLOCK_T, BLOCK_G], tl.float32), PRECISION)
        dw = gate * dot_terms(e, tl.trans(beta), dw, PRECISION)
        tl.store(dw_ptr + row[:, None] * G + grid[None, :], dw, mask=(t < T)[:, None] & (grid < G)[None, :])
        w = tl.trans(tl.where((grid == G)[None, :], 1.0, w))
        ey_sums = dot_terms(w, ey, ey_sums, PRECISION)
        e_sums = dot_terms(w, e, e_sums, PRECISION)
    store_token_sums(sums, film, gamma, gate, ey_sums, e_sums, None, b, d, exists, G, D)
    if dnormed is not None:
        vectors = sums.norm + tl.program_id(0).to(tl.int64) * 2 * D + d
        tl.store(vectors, tl.sum(dln_weight, 0), mask=exists)
        tl.store(vectors + D, tl.sum(dln_bias, 0), mask=exists)


def _sums_over_columns(dnormed: Tensor, y: Tensor, x: Tensor, w: Tensor, film: Film, norm: Norm) -> RowSums:
    """Compute the sums over parts of the columns that the norm's gradient takes."""
    (B, T, D), G = x.shape, film.table.ptr.shape[1]
    parts = parts_of_columns(B * T, D)
    means = torch.empty(2, B, T, parts, dtype=torch.float32, device=x.device)
    rows = RowSums(None, None, means[0], means[1], tl.constexpr(parts))
    tensors = dnormed, y, x, w, film.table.ptr
    half = all(tensor.dtype in HALF for tensor in tensors)
    launch(
        residual_rows_kernel,
        (B * triton.cdiv(T, BLOCK_T), parts),
        dnormed=strided(dnormed),
        y=strided(y),
        x=strided(x),
        film=film,
        norm=norm,
        rows=rows,
        T=T,
        G=G,
        D=D,
        BLOCK_T=BLOCK_T,
        BLOCK_G=BLOCK_G,
        BLOCK_D=BLOCK_D if half else BLOCK_D // 2,
        PARTS=parts,
        PRECISION=dot_precision(residual_rows_kernel, *tensors),
        num_warps=2,
        num_stages=2,
    )
    return rows


def _sums_over_tokens(
    dr: Tensor,
    dnormed: Tensor | None,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    film: Film,
    norm: Norm | None,
    rows: RowSums | None,
) -> tuple[_Written, TokenSums]:
    """Compute what is written of the tokens, and the sums of slots of them."""
    (B, T, D), G = x.shape, film.table.ptr.shape[1]
    tensors = y, w, film.table.ptr, film.bias, film.gate
    if norm is not None:
        tensors = *tensors, norm.weight
    half = all(tensor.dtype in HALF for tensor in tensors)
    block_t, block_d = 16, 64 if half else 32
    column_blocks = triton.cdiv(D, block_d)
    slots, blocks_per_slot = slots_of(triton.cdiv(T, block_t), B * column_blocks)
    sums = new_token_sums(B * slots, column_blocks, G, D, x.device, norm=rows is not None)
    written = _Written(
        torch.empty(y.shape, dtype=y.dtype, device=y.device),
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(column_blocks, B, T, G, dtype=torch.float32, device=x.device),
    )
    launch(
        residual_columns_kernel,
        (B * slots, column_blocks),
        dr=strided(dr),
        dnormed=strided(dnormed),
        y=strided(y),
        x=strided(x),
        film=film,
        norm=norm,
        rows=rows,
        written=written,
        sums=sums,
        B=B,
        T=T,
        G=G,
        blocks_per_slot=blocks_per_slot,
        D=D,
        BLOCK_T=block_t,
        BLOCK_G=BLOCK_G,
        BLOCK_D=block_d,
        PRECISION=dot_precision(residual_columns_kernel, *tensors),
        num_warps=4,
        num_stages=2 if half else 1,
    )
    return written, sums


def film_residual_backward(
    dr: Tensor,
    dnormed: Tensor | None,
    y: Tensor,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor | None,
    statistics: Tensor | None,
) -> tuple[Tensor, ...]:
    """Compute the gradients of y, x, w, table, bias, gate and a norm's ln_weight and ln_bias; dnormed None is zero."""
    if w.shape[2] > MOST_GRIDS:
        return many_grids_residual_backward(dr, dnormed, y, x, w, table, bias, gate, ln_weight, statistics)
    film = Film(strided(w), strided(table), None, bias, gate)
    norm = rows = vectors = None
    if ln_weight is not None and statistics is not None and dnormed is not None:
        norm, vectors = Norm(ln_weight, None, *statistics), ln_weight
        rows = _sums_over_columns(dnormed, y, x, w, film, norm)
    written, sums = _sums_over_tokens(dr, dnormed, y, x, w, film, norm, rows)
    found = finish(sums, written.dw, table, bias, gate, vectors, vectors, w)
    gradients = written.dy, written.dx, found.of_parts, found.table, found.bias, found.gate
    if ln_weight is None:
        return gradients
    if rows is None:
        return *gradients, torch.zeros_like(ln_weight), torch.zeros_like(ln_weight)
    return *gradients, found.ln_weight, found.ln_bias
