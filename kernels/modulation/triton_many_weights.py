"""The weights of many grids for tokens in Triton (docs/mathematics.md, section 2), all heads in one program.

Scores stay in registers, or, of more grids than these hold, come from memory, [B,H,T,G].

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; q [B,T,H,DH], k [B,G,H,DH], w [B,T,G],
x [B,T,D]. In kernels b and h are numbers, t, grid and d the indices of a block.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, load, strided
from ..common.triton_tiles import HALF, block_of, dot, dot_precision
from ..launch import launch
from .selection import Selection
from .triton_modulation import merge_statistics, row_tile
from .triton_row_gradients import table_from_rows
from .triton_rows import (
    new_weights,
    rows_from_table,
    store_rows,
    store_statistics,
    tokens_and_grids,
    width_of_weights,
)
from .triton_selection import kernel_selection, softmax_of_many

MOST_GRIDS_OF_HALF, MOST_GRIDS_OF_FLOAT32 = 512, 128
NUMBERS_OF_A_TILE = 8192


class RowStatistics(NamedTuple):
    """Statistics of a LayerNorm over D of rows x [B,T,D], as a kernel makes them beside its own work."""

    x: Strided
    mean: Any  # [B,T] float32, contiguous, as is rstd: written
    rstd: Any
    eps: float

    do_not_specialize_on_alignment = ("mean", "rstd")


@triton.jit
def _products(
    q,
    k,
    scores,
    b,
    h,
    t,
    grid,
    token_kept,
    grid_kept,
    DH: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q.k of a head, [BLOCK_T, BLOCK_G]: from `scores` [B,H,T,G], or from q and k where it is None."""
    if scores is None:
        d = tl.arange(0, BLOCK_DH)
        q_tile = load(q, (b, t[:, None], h, d[None, :]), token_kept[:, None] & (d < DH)[None, :])
        k_tile = load(k, (b, grid.to(tl.int64)[:, None], h, d[None, :]), grid_kept[:, None] & (d < DH)[None, :])
        found = dot(q_tile, tl.trans(k_tile), PRECISION)
    else:
        found = load(scores, (b, h, t[:, None], grid[None, :]), token_kept[:, None] & grid_kept[None, :])
    return found


@triton.jit
def many_weights_kernel(
    q,  # [B,T,H,DH]
    k,  # [B,G,H,DH]
    scores,  # [B,H,T,G] float32: the products q.k; None: made here
    selection,
    rows,  # RowStatistics, or None
    w_ptr,  # `new_weights` [B,T,G]: float32, or the first of two terms of 16 bits
    rest_ptr,  # likewise the second term, or None
    DH: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row: their statistics, then w, summed over the heads."""
    T, G = selection.T, selection.G
    b, t, grid, token_kept, grid_kept = tokens_and_grids(selection, BLOCK_T, BLOCK_G)
    if rows is not None:
        mean = tl.zeros([BLOCK_T], tl.float32)
        m2 = tl.zeros([BLOCK_T], tl.float32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            mean, m2 = merge_statistics(row_tile(rows.x, b, t, d, token_kept, D), mean, m2, start, d, D)
        store_statistics(rows, b, t, T, mean, 1 / tl.sqrt(m2 / D + rows.eps))

    w = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)
    for h in range(selection.H):
        products = _products(q, k, scores, b, h, t, grid, token_kept, grid_kept, DH, BLOCK_DH, PRECISION)
        p, counts = softmax_of_many(products, selection, b, h, t, grid, token_kept, grid_kept)
        if not selection.RENORMALIZE or selection.seed is not None:
            p = tl.where(counts, p, 0.0)
        w += p
    w *= 1 / selection.shares
    width = width_of_weights(G)
    store_rows(w_ptr, b, t, T, grid, width, w)
    if rest_ptr is not None:
        store_rows(rest_ptr, b, t, T, grid, width, w - w.to(rest_ptr.dtype.element_ty).to(tl.float32))


@triton.jit
def many_scores_backward_kernel(
    q,  # [B,T,H,DH]
    k,  # [B,G,H,DH]
    scores,  # [B,H,T,G] float32: the products q.k; None: made here
    selection,
    dw_ptr,  # [B,T,G] float32, contiguous
    ds_ptr,  # `new_weights` [B,H,T,G] float32
    DH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row and a head: ds = p (da - sum p da) scale, da = dw / shares.

    da is 0 for grids that do not count.
    """
    T, G = selection.T, selection.G
    h = tl.program_id(1)
    b, t, grid, token_kept, grid_kept = tokens_and_grids(selection, BLOCK_T, BLOCK_G)
    products = _products(q, k, scores, b, h, t, grid, token_kept, grid_kept, DH, BLOCK_DH, PRECISION)
    p, counts = softmax_of_many(products, selection, b, h, t, grid, token_kept, grid_kept)
    counts &= token_kept[:, None]
    dw = tl.load(dw_ptr + (b * T + t[:, None]) * G + grid[None, :], mask=counts, other=0.0)
    da = dw * (1 / selection.shares)
    ds = p * (da - tl.sum(p * da, 1)[:, None]) * selection.scale
    store_rows(ds_ptr, b * selection.H + h, t, T, grid, width_of_weights(G), ds)


def _scores(q: Tensor, k: Tensor) -> Tensor | None:
    """The products q.k [B,H,T,G], where a program has not the registers to make them for all grids; else None."""
    (B, T, H, _), G = q.shape, k.shape[1]
    if (MOST_GRIDS_OF_HALF if q.dtype in HALF and k.dtype == q.dtype else MOST_GRIDS_OF_FLOAT32) >= G:
        return None
    scores = new_weights(B, H, T, G, dtype=torch.float32, device=q.device)[..., :G]
    rows_from_table(q.transpose(1, 2), k.permute(0, 2, 3, 1), None, out=scores)
    return scores


def _tile(G: int, scores: Tensor | None) -> dict[str, int]:
    """Tokens and grids of a program, and its warps: a product has 16 rows; else a token's row is a few warps' alone.

    32 scores a thread, of fewer than 256 grids fewer. Fewer than 64 take as long as 64, and are no tile of their own.
    """
    block_g = max(64, block_of(G))
    block_t, fewest = (16, 4) if scores is None else (1, 1)
    return {"BLOCK_T": block_t, "BLOCK_G": block_g, "num_warps": min(16, max(fewest, block_t * block_g // 1024))}


def dtype_of_weights(q: Tensor, table: Tensor) -> torch.dtype:
    """The dtype of `many_weights` for a product with `table`: its own where it has 16 bits, as does the w of the op.

    Products of 16-bit operands are exact, and two terms have 16 bits of a weight or more. One term would not do: where
    gate gamma is near -1, 1 + gate gamma shows the rounding of the weights alone.
    """
    return table.dtype if table.dtype in HALF and q.dtype == table.dtype else torch.float32


def many_weights(
    q: Tensor, k: Tensor, selection: Selection, dtype: torch.dtype, rows: RowStatistics | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute w [B,T,width] in float32, or, with a `dtype` of 16 bits, as the two terms whose sum it is; and `rows`.

    After the G grids there are zeros (`Weights`).
    """
    (B, T, _, D_h), G = q.shape, k.shape[1]
    w = new_weights(B, T, G, dtype=dtype, device=q.device)
    rest = None if dtype == torch.float32 else torch.empty_like(w)
    D = 1 if rows is None else rows.x.ptr.shape[2]
    scores = _scores(q, k)
    tile = _tile(G, scores)
    launch(
        many_weights_kernel,
        (B * triton.cdiv(T, tile["BLOCK_T"]),),
        q=strided(q),
        k=strided(k),
        scores=strided(scores),
        selection=kernel_selection(selection, q, k),
        rows=rows,
        w_ptr=w,
        rest_ptr=rest,
        DH=D_h,
        D=D,
        BLOCK_DH=block_of(D_h),
        BLOCK_D=min(block_of(D), NUMBERS_OF_A_TILE // tile["BLOCK_T"]),
        PRECISION=dot_precision(many_weights_kernel, q, k),
        **tile,
    )
    return w, rest


@triton.jit(do_not_specialize=["tokens", "G"])
def weights_of_grids_kernel(
    w_ptr,  # `new_weights` [tokens,G]
    out_ptr,  # [tokens,G], contiguous
    tokens,
    G,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Each program copies BLOCK_G grids of BLOCK_T tokens."""
    t = (tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    grid = (tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G))[None, :]
    inside = (t < tokens) & (grid < G)
    tl.store(out_ptr + t * G + grid, tl.load(w_ptr + t * width_of_weights(G) + grid, mask=inside), mask=inside)


def weights_of_grids(w: Tensor, G: int, dtype: torch.dtype) -> Tensor:
    """The weights [B,T,G] of an op, contiguous and in its dtype, of w [B,T,width] from `many_weights`."""
    B, T, width = w.shape
    if width == G and w.dtype == dtype:
        return w
    out = torch.empty(B, T, G, dtype=dtype, device=w.device)
    tile = {"BLOCK_T": 8, "BLOCK_G": 128}
    grid = triton.cdiv(B * T, tile["BLOCK_T"]), triton.cdiv(G, tile["BLOCK_G"])
    launch(weights_of_grids_kernel, grid, w, out, B * T, G, **tile, num_warps=4)
    return out


def many_weights_backward(dw: Tensor, q: Tensor, k: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Compute dq and dk in the dtypes of q and k, from dw [B,T,G] float32, contiguous."""
    (B, T, H, D_h), G = q.shape, k.shape[1]
    ds = new_weights(B, H, T, G, dtype=torch.float32, device=q.device)
    scores = _scores(q, k)
    tile = _tile(G, scores)
    launch(
        many_scores_backward_kernel,
        (B * triton.cdiv(T, tile["BLOCK_T"]), H),
        q=strided(q),
        k=strided(k),
        scores=strided(scores),
        selection=kernel_selection(selection, q, k),
        dw_ptr=dw,
        ds_ptr=ds,
        DH=D_h,
        BLOCK_DH=block_of(D_h),
        PRECISION=dot_precision(many_scores_backward_kernel, q, k),
        **tile,
    )
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    rows_from_table(ds, k.transpose(1, 2), selection.grid_mask, out=dq.transpose(1, 2))
    dk = table_from_rows(ds, q.transpose(1, 2), G, selection.text_mask).transpose(1, 2)
    return dq, dk.to(k.dtype)
