"""Gradients of the products of `triton_rows.py` by weights and table, in Triton (mathematics.md, 2a).

    rows = w table          dw = e table^T          dtable = w^T e

With FiLM a row stands for two: the table has 2 D columns, gamma's half first, and the gradients of gamma and beta
are e u and e, where u is what was modulated, given as it is or as LayerNorm(u) from its statistics.

Shapes: B rows of T tokens and G grids, D columns; w [B,T,G]; masks [B,T] and [B,G]. In kernels b is a number, t, grid
and d are the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import BLOCK_OF_TOKENS, HALF, dot, dot_precision, pipeline_stages, slots_of, token_block
from ..launch import launch
from .triton_rows import (
    BLOCK_D,
    BLOCK_G,
    Norm,
    Weights,
    kept,
    load_statistics,
    normalised,
    sizes_of,
    store_rows,
    with_heads,
)


@triton.jit
def _dot_of_terms(first, rest, b):
    """(first + rest) b of bfloat16 terms, float32: b is bfloat16 too, or made two terms, of which the least does not
    count."""
    if b.dtype == tl.bfloat16:
        found = tl.dot(first, b) + tl.dot(rest, b)
    else:
        b_first = b.to(tl.bfloat16)
        b_rest = (b - b_first.to(tl.float32)).to(tl.bfloat16)
        found = tl.dot(first, b_first) + tl.dot(first, b_rest) + tl.dot(rest, b_first)
    return found


@triton.jit
def _dot_with_table(a, table_tile, PRECISION: tl.constexpr):
    """a table_tile, float32; the terms of a float32 a for a table of bfloat16 are two."""
    if a.dtype == tl.float32 and table_tile.dtype == tl.bfloat16 and PRECISION == "bf16x3":
        first = a.to(tl.bfloat16)
        found = tl.dot(first, table_tile) + tl.dot((a - first.to(tl.float32)).to(tl.bfloat16), table_tile)
    else:
        found = dot(a, table_tile, PRECISION)
    return found


@triton.jit
def _film_rows(e, u, norm, b, h, t, T, d, D, token_kept):
    """e and e u, [BLOCK_T, BLOCK_D] float32; without u, e twice."""
    index = (b, h, t[:, None], d[None, :])
    inside = token_kept[:, None] & (d < D)[None, :]
    e_tile = load(e, index, inside)
    eu_tile = e_tile
    if u is not None:
        u_tile = load(u, index, inside).to(tl.float32)
        if norm is not None:
            mean, rstd = load_statistics(norm, b, t, T, token_kept)
            _, _, u_tile = normalised(u_tile, mean, rstd, norm, d, D)
        eu_tile = e_tile.to(tl.float32) * u_tile
    return e_tile, eu_tile


@triton.jit(do_not_specialize=["T", "G"], do_not_specialize_on_alignment=["dw"])
def weights_from_rows_kernel(
    e,  # [B,1,T,D]
    u,  # [B,1,T,D], or None: no FiLM
    norm,  # Norm of u, or None: u is not normalised
    table,  # [B,G,D], with FiLM [B,G,2D]
    gate_ptr,  # a factor of the sum, or None
    grid_mask,  # [B,G] or None
    text_mask,  # [B,T] or None
    dw,  # [B,T,G] or None: added
    out_ptr,  # [B,T,G] float32, contiguous
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row and a block of grids; it walks through the columns."""
    b, t = token_block(T, BLOCK_T)
    grid = tl.program_id(1).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    token_kept = kept(text_mask, b, t, T)
    grid_kept = kept(grid_mask, b, grid, G)
    acc = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)
    # Addresses taken out of the loop would be those of all its blocks, once LLVM has unrolled it.
    for start in tl.range(0, D, BLOCK_D, disable_licm=True):
        d = start + tl.arange(0, BLOCK_D)
        e_tile, eu_tile = _film_rows(e, u, norm, b, 0, t, T, d, D, token_kept)
        inside = (d < D)[:, None] & grid_kept[None, :]
        acc += _dot_with_table(eu_tile, load(table, (b, grid[None, :], d[:, None]), inside), PRECISION)
        if u is not None:
            acc += _dot_with_table(e_tile, load(table, (b, grid[None, :], (D + d)[:, None]), inside), PRECISION)
    if gate_ptr is not None:
        acc *= tl.load(gate_ptr).to(tl.float32)
    if dw is not None:
        inside = (t < T)[:, None] & (grid < G)[None, :]
        acc += load(dw, (b, t[:, None], grid[None, :]), inside).to(tl.float32)
    store_rows(out_ptr, b, t, T, grid, G, acc)


@triton.jit(do_not_specialize=["w", "B", "T", "G", "blocks_per_slot"], do_not_specialize_on_alignment=["w"])
def table_from_rows_kernel(
    w,  # Weights
    e,  # [B,H,T,D]
    u,  # [B,1,T,D], or None: no FiLM
    norm,  # Norm of u, or None: u is not normalised
    text_mask,  # [B,T] or None
    out_ptr,  # [slots,B,H,G,D], with FiLM [slots,B,1,G,2D], float32, contiguous: a part for each slot
    B,
    T,
    G,
    blocks_per_slot,  # how many blocks of tokens a program walks through
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a head of a row, a slot of its tokens, a block of grids and one of columns; it loops over the
    tokens."""
    row = tl.program_id(0).to(tl.int64)
    h = row % H
    b = row // H % B
    slot = row // H // B
    grid = tl.program_id(1).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    acc_beta = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for block in range(blocks_per_slot):
        t = (slot * blocks_per_slot + block) * BLOCK_T + tl.arange(0, BLOCK_T)
        token_kept = kept(text_mask, b, t, T)
        e_tile, eu_tile = _film_rows(e, u, norm, b, h, t, T, d, D, token_kept)
        index = (b, h, t[None, :], grid[:, None])
        inside = token_kept[None, :] & (grid < G)[:, None]
        w_tile = load(w.first, index, inside)
        if w.rest is None:
            acc += dot(w_tile, eu_tile, PRECISION)
            if u is not None:
                acc_beta += dot(w_tile, e_tile, PRECISION)
        else:
            rest_tile = load(w.rest, index, inside)
            if w_tile.dtype == tl.bfloat16:
                acc += _dot_of_terms(w_tile, rest_tile, eu_tile)
                if u is not None:
                    acc_beta += _dot_of_terms(w_tile, rest_tile, e_tile)
            else:
                whole = w_tile.to(tl.float32) + rest_tile.to(tl.float32)
                acc += dot(whole, eu_tile, PRECISION)
                if u is not None:
                    acc_beta += dot(whole, e_tile, PRECISION)
    width = D if u is None else 2 * D
    rows = out_ptr + (row * G + grid[:, None]) * width + d[None, :]
    of_table = (grid < G)[:, None] & (d < D)[None, :]
    tl.store(rows, acc, mask=of_table)
    if u is not None:
        tl.store(rows + D, acc_beta, mask=of_table)


def _tiles(G: int, wide: dict[str, int] | None, *operands: Tensor) -> dict[str, int]:
    """Blocks, warps and stages of a kernel that makes gradients: `wide` ones, where FiLM is by many grids in bfloat16.

    What FiLM makes of rows is made anew for each block of grids or columns: the wider, the less. Fewer than 64 rows of
    a product keep it from being asynchronous: of two stages the next tile would overwrite one that is still read. Of
    other operands the terms of products would take the registers.
    """
    if wide is not None and G > 64 and all(operand.dtype == torch.bfloat16 for operand in operands):
        return wide
    half = all(operand.dtype in HALF for operand in operands)  # else a product of twice the rows takes longer
    block_t, block_g = 16 if wide is not None else BLOCK_OF_TOKENS, BLOCK_G if half or G > 16 else 16
    return sizes_of(block_t, block_g, BLOCK_D, 4, pipeline_stages(*operands))


def weights_from_rows(
    e: Tensor,
    table: Tensor,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    dw: Tensor | None,
    u: Tensor | None = None,
    norm: Norm | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """Compute dw + gate e table^T, [B,T,G] float32; with `u`, e stands for [e u, e], normalised first if `norm` is."""
    (B, T, D), G = e.shape, table.shape[1]
    out = torch.empty(B, T, G, dtype=torch.float32, device=e.device)
    tiles = _tiles(G, None if u is None else sizes_of(32, 64, 32, 4, 2), e, table)
    launch(
        weights_from_rows_kernel,
        (B * triton.cdiv(T, tiles["BLOCK_T"]), triton.cdiv(G, tiles["BLOCK_G"])),
        e=strided(with_heads(e)),
        u=strided(with_heads(u)),
        norm=norm,
        table=strided(table),
        gate_ptr=gate,
        grid_mask=strided(grid_mask),
        text_mask=strided(text_mask),
        dw=strided(dw),
        out_ptr=out,
        T=T,
        G=G,
        D=D,
        PRECISION=dot_precision(weights_from_rows_kernel, e, table),
        **tiles,
    )
    return out


def table_from_rows(
    w: Tensor,
    e: Tensor,
    G: int,
    text_mask: Tensor | None,
    u: Tensor | None = None,
    norm: Norm | None = None,
    rest: Tensor | None = None,
) -> Tensor:
    """Compute w^T e, [B,G,D] float32, or with `u` (and `norm`, as in `weights_from_rows`) w^T [e u, e], [B,G,2D].

    w [B,T,width] begins with the G grids; `rest` is added to it. Without `u`, w, e and what is returned may have an
    axis H of heads after B.
    """
    heads = e.shape[1:-2]
    e, u = with_heads(e), with_heads(u)
    B, H, T, D = e.shape
    tiles = _tiles(G, None if u is None else sizes_of(32, 32, 64, 4, 2), e, w)
    blocks = triton.cdiv(T, tiles["BLOCK_T"])
    of_table = triton.cdiv(G, tiles["BLOCK_G"]), triton.cdiv(D, tiles["BLOCK_D"])
    slots, blocks_per_slot = slots_of(blocks, B * H * of_table[0] * of_table[1])
    out = torch.empty(slots, B, *heads, G, D if u is None else 2 * D, dtype=torch.float32, device=e.device)
    launch(
        table_from_rows_kernel,
        (B * H * slots, *of_table),
        w=Weights.of(w, rest),
        e=strided(e),
        u=strided(u),
        norm=norm,
        text_mask=strided(text_mask),
        out_ptr=out,
        B=B,
        T=T,
        G=G,
        blocks_per_slot=blocks_per_slot,
        H=H,
        D=D,
        PRECISION=dot_precision(table_from_rows_kernel, e),
        **tiles,
    )
    return out[0] if slots == 1 else out.sum(0)
