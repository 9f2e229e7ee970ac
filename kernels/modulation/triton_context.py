"""Token-grid correlation in Triton (docs/mathematics.md, section 2).

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; q [B,T,H,DH], k [B,G,H,DH], v [B,G,D],
w [B,T,G], c [B,T,D]. In kernels b is a number, t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import block_of, block_of_tokens, dot, dot_precision, token_block
from ..configurations import configured
from ..launch import launch
from .selection import Selection
from .triton_few_grids import (
    add_rows,
    few_grids,
    few_grids_tiles,
    few_selection,
    few_weights,
    grids_kept,
    heads_of_tokens,
    heads_tiles,
    queries_and_keys,
    store_weights,
    table_rows,
)
from .triton_many_weights import dtype_of_weights, many_weights, weights_of_grids
from .triton_row_gradients import table_from_rows, weights_from_rows
from .triton_rows import rows_from_table, store_rows, tokens_and_grids
from .triton_selection import selection_in_registers
from .triton_weights import MOST_GRIDS_IN_REGISTERS, grid_weights, grid_weights_backward, token_weights

BLOCK_D = 64


@triton.jit
def correlation_context_kernel(
    q,  # [B,T,H,DH]
    k,  # [B,G,H,DH]
    v,  # [B,G,D]
    selection,
    c_ptr,  # [B,T,D], contiguous
    w_ptr,  # [B,T,G], contiguous
    DH: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row: w in registers, then c = w v a block of columns at a time."""
    T, G = selection.T, selection.G
    b, t, grid, token_kept, grid_kept = tokens_and_grids(selection, BLOCK_T, BLOCK_G)
    w = token_weights(q, k, selection, b, t, grid, token_kept, grid_kept, DH, BLOCK_DH, PRECISION)
    store_rows(w_ptr, b, t, T, grid, G, w)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        v_tile = load(v, (b, grid.to(tl.int64)[:, None], d[None, :]), grid_kept[:, None] & (d < D)[None, :])
        store_rows(c_ptr, b, t, T, d, D, dot(w, v_tile, PRECISION))


@triton.jit
def few_grids_context_kernel(
    q,  # [B,T,H,DH]
    k,  # [B,G,H,DH]
    v,  # [B,G,D]
    selection,
    c_ptr,  # [B,T,D], contiguous
    w,  # [B,T,G], written
    D: tl.constexpr,
    DH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FEW: tl.constexpr,
):
    """Each program takes a block of tokens of a row, and all columns: c = w v as a sum over grids."""
    T, G = selection.T, selection.G
    b, t = token_block(T, BLOCK_T)
    head_t, h = heads_of_tokens(T, BLOCK_T, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    grid_kept = grids_kept(selection.grid_mask, b, G, FEW)
    queries, keys = queries_and_keys(q, k, selection, b, head_t, h, grid_kept, DH, BLOCK_DH)
    rows = table_rows(v, b, d[None, :], grid_kept, D)
    weights = few_weights(queries, keys, selection, b, head_t, h, grid_kept, BLOCK_T, BLOCK_H)
    store_weights(w, weights, b, t, T, G)
    store_rows(c_ptr, b, t, T, d, D, add_rows(tl.zeros([1, BLOCK_D], tl.float32), weights, rows))


def correlation_context(q: Tensor, k: Tensor, v: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Compute c in the dtype of v and w in the dtype of q."""
    (B, T, _, D_h), (G, D) = q.shape, v.shape[1:]
    c = torch.empty(B, T, D, dtype=v.dtype, device=v.device)
    if G > MOST_GRIDS_IN_REGISTERS:
        w, rest = many_weights(q, k, selection, dtype_of_weights(q, v))
        rows_from_table(w, v, selection.grid_mask, out=c, rest=rest)
        return c, weights_of_grids(w, G, q.dtype)
    w = torch.empty(B, T, G, dtype=q.dtype, device=q.device)
    if few_grids(G, D, q.shape[2:]):
        sizes = few_grids_tiles(few_grids_context_kernel, G, c)
        launch(
            few_grids_context_kernel,
            (B * triton.cdiv(T, sizes["BLOCK_T"]),),
            q=strided(q),
            k=strided(k),
            v=strided(v),
            selection=few_selection(selection, q, k),
            c_ptr=c,
            w=strided(w),
            D=D,
            **heads_tiles(k),
            **sizes,
        )
        return c, w
    tiles = {"BLOCK_T": 16 if G > 32 else block_of_tokens(B, T), "BLOCK_D": BLOCK_D, "num_warps": 4}
    tiles = configured(correlation_context_kernel, q, {"T": T, "G": G, "D": D}, tiles)
    launch(
        correlation_context_kernel,
        (B * triton.cdiv(T, tiles["BLOCK_T"]),),
        q=strided(q),
        k=strided(k),
        v=strided(v),
        selection=selection_in_registers(selection, q, k),
        c_ptr=c,
        w_ptr=w,
        DH=D_h,
        D=D,
        BLOCK_G=block_of(G),
        BLOCK_DH=block_of(D_h),
        PRECISION=dot_precision(correlation_context_kernel, q, k, v),
        **tiles,
    )
    return c, w


def correlation_context_backward(
    dc: Tensor, dw: Tensor | None, q: Tensor, k: Tensor, v: Tensor, selection: Selection
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dq, dk and dv in the dtypes of q, k and v; dw None is zero."""
    grid_mask, text_mask = selection.grid_mask, selection.text_mask
    w, rest = grid_weights(q, k, selection, dtype_of_weights(q, v))
    dv = table_from_rows(w, dc, v.shape[1], text_mask, rest=rest).to(v.dtype)
    dq, dk = grid_weights_backward(weights_from_rows(dc, v, grid_mask, text_mask, dw), q, k, selection)
    return dq, dk, dv
