"""The backward pass of FiLM of normalised tokens, in Triton (docs/mathematics.md, 2a).

With e the gradient of x_f, u = LayerNorm(x) = n weight + bias and f = 1 + gate gamma, the gradient of n is
dn = e f weight, and dx = (dn - mean dn - n mean(dn n)) / deviation with means over columns. Four kernels: sums over
columns, for dx and dw; dx, with sums over tokens; the gradients of scores; the last sums.

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; x [B,T,D], q [B,T,H,DH], k [B,G,H,DH],
w [B,T,G], table [B,G,2D]. In kernels b is a number, t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import HALF, block_of, dot_precision, slots_of, token_block
from ..launch import launch
from .selection import Selection
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
from .triton_many_film_backward import many_film_backward
from .triton_modulation import Film
from .triton_rows import Norm, kept, store_rows
from .triton_selection import selection_in_registers
from .triton_weights import grid_weights_gradients, token_weights


@triton.jit(do_not_specialize_on_alignment=["dw_in"])
def film_rows_kernel(
    dx_f,  # [B,T,D]
    dw_in,  # [B,T,G] or None: the gradient of w itself
    x,  # [B,T,D]
    q,  # [B,T,H,DH]
    k,  # [B,G,H,DH]
    film,  # its w is not there yet
    norm,
    selection,
    rows,  # RowSums, written
    DH: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row and a part of the columns: w, then sums over columns, dw too."""
    T, G = selection.T, selection.G
    b, t = token_block(T, BLOCK_T)
    part = tl.program_id(1)
    grid = tl.arange(0, BLOCK_G)
    token_kept = kept(selection.text_mask, b, t, T)
    grid_kept = kept(selection.grid_mask, b, grid, G)
    inside = (t < T)[:, None] & (grid < G)[None, :]
    w = token_weights(q, k, selection, b, t, grid, token_kept, grid_kept, DH, BLOCK_DH, PRECISION)
    if part == 0:
        store_rows(rows.w, b, t, T, grid, G, w)
    row = b * T + t
    gate = tl.load(film.gate).to(tl.float32)
    mean = tl.load(norm.mean + row, mask=token_kept, other=0.0)[:, None]
    rstd = tl.load(norm.rstd + row, mask=token_kept, other=0.0)[:, None]

    dw = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)
    dn_sums = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    dn_n_sums = dn_sums
    BLOCKS: tl.constexpr = tl.cdiv(D, PARTS * BLOCK_D)
    for block in range(BLOCKS):
        d, exists = columns((part * BLOCKS + block) * BLOCK_D, D, PARTS * BLOCK_D, BLOCK_D)
        inside_x = token_kept[:, None] & exists[None, :]
        gamma_tile, beta_tile = table_tile(film, b, grid, d, exists, G), table_tile(film, b, grid, D + d, exists, G)
        gamma = dot_terms(w, gamma_tile, tl.zeros([BLOCK_T, BLOCK_D], tl.float32), PRECISION)
        ln_weight = vector(norm.weight, d, exists)
        known = (ln_weight * (1 + gate * vector(film.bias, d, exists)))[None, :]
        e_tile = load(dx_f, (b, t[:, None], d[None, :]), inside_x)
        e = e_tile.to(tl.float32)
        n = (load(x, (b, t[:, None], d[None, :]), inside_x).to(tl.float32) - mean) * rstd
        eu = e * ln_weight[None, :] * n + e * vector(norm.bias, d, exists)[None, :]
        dn = e * (gamma * (ln_weight * gate)[None, :] + known)  # as in film_columns_kernel: there it cancels
        dn_sums += dn
        dn_n_sums += dn * n
        dw = dot_terms(eu, tl.trans(gamma_tile), dw, PRECISION)
        dw = dot_terms(e_tile, tl.trans(beta_tile), dw, PRECISION)

    row = row * PARTS + part
    tl.store(rows.dn + row, tl.sum(dn_sums, 1), mask=t < T)
    tl.store(rows.dn_n + row, tl.sum(dn_n_sums, 1), mask=t < T)
    dw *= gate
    if dw_in is not None:
        once = (t < tl.where(part == 0, T, 0))[:, None] & (grid < G)[None, :]
        dw += load(dw_in, (b, t[:, None], grid[None, :]), once).to(tl.float32)
    tl.store(rows.dw + row[:, None] * G + grid[None, :], dw, mask=inside)


@triton.jit(do_not_specialize=["T", "G", "blocks_per_slot"])
def film_columns_kernel(
    dx_f,  # [B,T,D]
    x,  # [B,T,D]
    film,
    norm,
    text_mask,  # [B,T] or None
    rows,  # RowSums
    dx_ptr,  # [B,T,D], contiguous
    sums,  # TokenSums, written
    T,
    G,
    blocks_per_slot,  # how many blocks of tokens a program walks through
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a slot of the tokens of a row and a block of columns: dx, and sums over the tokens."""
    b, first = slot_of_tokens(T, BLOCK_T, blocks_per_slot)
    d, exists = columns(tl.program_id(1) * BLOCK_D, D, BLOCK_D, BLOCK_D)
    grid = tl.arange(0, BLOCK_G)
    gate = tl.load(film.gate).to(tl.float32)
    gamma = table_tile(film, b, grid, d, exists, G)
    ln_weight = vector(norm.weight, d, exists)
    known = (ln_weight * (1 + gate * vector(film.bias, d, exists)))[None, :]
    scale = (ln_weight * gate)[None, :]

    en_sums = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    e_sums = en_sums
    for block in range(blocks_per_slot):
        t = first + block * BLOCK_T + tl.arange(0, BLOCK_T)
        row = b * T + t
        token_kept = kept(text_mask, b, t, T)
        w = tl.load(rows.w + row[:, None] * G + grid[None, :], mask=(t < T)[:, None] & (grid < G)[None, :], other=0.0)
        w = tl.where((grid == G)[None, :], 1.0, w)
        mean = tl.load(norm.mean + row, mask=token_kept, other=0.0)[:, None]
        rstd = tl.load(norm.rstd + row, mask=token_kept, other=0.0)[:, None]
        dn_mean, dn_n_mean = row_means(rows, row, token_kept, D)
        inside = token_kept[:, None] & exists[None, :]
        e_tile = load(dx_f, (b, t[:, None], d[None, :]), inside)
        e = e_tile.to(tl.float32)
        n = (load(x, (b, t[:, None], d[None, :]), inside).to(tl.float32) - mean) * rstd
        factor = dot_terms(w, gamma, tl.zeros([BLOCK_T, BLOCK_D], tl.float32), PRECISION) * scale + known
        dx = (e * factor - dn_mean[:, None] - n * dn_n_mean[:, None]) * rstd
        tl.store(dx_ptr + row[:, None] * D + d[None, :], dx, mask=(t < T)[:, None] & exists[None, :])
        en_sums = dot_terms(tl.trans(w), e * n, en_sums, PRECISION)
        e_sums = dot_terms(tl.trans(w), e_tile, e_sums, PRECISION)
    store_token_sums(sums, film, gamma, gate, en_sums, e_sums, norm, b, d, exists, G, D)


def _sums_over_columns(
    dx_f: Tensor, dw: Tensor | None, x: Tensor, q: Tensor, k: Tensor, film: Film, norm: Norm, selection: Selection
) -> RowSums:
    """Compute the weights and the sums over parts of the columns."""
    (B, T, D), (G, D_h) = x.shape, k.shape[1::2]
    parts = parts_of_columns(B * T, D)
    new = {"dtype": torch.float32, "device": x.device}
    means = torch.empty(2, B, T, parts, **new)
    rows = RowSums(
        torch.empty(B, T, G, **new), torch.empty(B, T, parts, G, **new), means[0], means[1], tl.constexpr(parts)
    )
    # With float16 every operand is two terms: smaller tiles, else registers are spilled.
    small = all(tensor.dtype == torch.bfloat16 for tensor in (dx_f, x, film.table.ptr))
    launch(
        film_rows_kernel,
        (B * triton.cdiv(T, BLOCK_T), parts),
        dx_f=strided(dx_f),
        dw_in=strided(dw),
        x=strided(x),
        q=strided(q),
        k=strided(k),
        film=film,
        norm=norm,
        selection=selection_in_registers(selection, q, k),
        rows=rows,
        DH=D_h,
        D=D,
        BLOCK_T=BLOCK_T,
        BLOCK_G=BLOCK_G,
        BLOCK_DH=block_of(D_h),
        BLOCK_D=BLOCK_D if small else BLOCK_D // 2,
        PARTS=parts,
        PRECISION=dot_precision(film_rows_kernel, dx_f, x, q, k, film.table.ptr),
        num_warps=2,
        num_stages=2,
    )
    return rows


def _sums_over_tokens(
    dx_f: Tensor, x: Tensor, film: Film, norm: Norm, text_mask: Tensor | None, rows: RowSums
) -> tuple[Tensor, TokenSums]:
    """Compute dx and the sums of slots of tokens."""
    (B, T, D), G = x.shape, film.table.ptr.shape[1]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    tensors = dx_f, x, film.table.ptr, film.bias, film.gate, norm.weight, norm.bias
    half = all(tensor.dtype in HALF for tensor in tensors)
    block_t, block_d = 16, 128 if half else 64
    column_blocks = triton.cdiv(D, block_d)
    slots, blocks_per_slot = slots_of(triton.cdiv(T, block_t), B * column_blocks)
    sums = new_token_sums(B * slots, column_blocks, G, D, x.device, norm=True)
    launch(
        film_columns_kernel,
        (B * slots, column_blocks),
        dx_f=strided(dx_f),
        x=strided(x),
        film=film,
        norm=norm,
        text_mask=strided(text_mask),
        rows=rows,
        dx_ptr=dx,
        sums=sums,
        T=T,
        G=G,
        blocks_per_slot=blocks_per_slot,
        D=D,
        BLOCK_T=block_t,
        BLOCK_G=BLOCK_G,
        BLOCK_D=block_d,
        PRECISION=dot_precision(film_columns_kernel, *tensors),
        num_warps=4,
        num_stages=3 if half else 1,
    )
    return dx, sums


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
    norm = Norm(ln_weight, ln_bias, *statistics)
    if k.shape[1] > MOST_GRIDS:
        return many_film_backward(dx_f, dw, x, q, k, table, bias, gate, norm, selection)
    film = Film(None, strided(table), strided(selection.grid_mask), bias, gate)
    rows = _sums_over_columns(dx_f, dw, x, q, k, film, norm, selection)
    dx, sums = _sums_over_tokens(dx_f, x, film, norm, selection.text_mask, rows)
    dq, dk_parts = grid_weights_gradients(rows.dw, q, k, selection)
    found = finish(sums, dk_parts, table, bias, gate, ln_weight, ln_bias, k)
    return dx, dq, found.of_parts, found.table, found.bias, found.gate, found.ln_weight, found.ln_bias
