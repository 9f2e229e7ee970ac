"""The weights of grids for tokens in Triton (docs/mathematics.md, section 2).

Scores, the selection and the softmax of few grids live in registers, one head at a time; only the mean over heads
leaves the program, and the backward pass makes all else again. More grids: `triton_many_weights.py`.

Shapes: B rows of T tokens and G grids, H heads of DH numbers; q [B,T,H,DH], k [B,G,H,DH], w [B,T,G]. In kernels b and h
are numbers, t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import BLOCK_OF_TOKENS, HALF, block_of, dot, dot_precision, slots_of
from ..launch import launch
from .selection import Selection
from .triton_many_weights import many_weights, many_weights_backward
from .triton_rows import kept, new_weights, store_rows, tokens_and_grids, width_of_weights
from .triton_selection import selection_in_registers, softmax

# With more grids the tile of a head's scores no longer fits in registers, or not beside dk.
MOST_GRIDS_IN_REGISTERS = 64
MOST_GRIDS_BESIDE_DK = 32


@triton.jit
def _head_softmax(
    q,
    k,
    selection,
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
    """q and k of a head, the softmax p of their scores, and which entries of p count."""
    d = tl.arange(0, BLOCK_DH)
    q_tile = load(q, (b, t[:, None], h, d[None, :]), token_kept[:, None] & (d < DH)[None, :])
    k_tile = load(k, (b, grid.to(tl.int64)[:, None], h, d[None, :]), grid_kept[:, None] & (d < DH)[None, :])
    products = dot(q_tile, tl.trans(k_tile), PRECISION)
    p, counts = softmax(products, selection, b, h, t, grid, token_kept, grid_kept)
    return q_tile, k_tile, p, counts


@triton.jit
def token_weights(
    q,
    k,
    selection,
    b,
    t,
    grid,
    token_kept,
    grid_kept,
    DH: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute w [BLOCK_T, BLOCK_G] float32 of the tokens t (int64) of row b (int64): the mean over heads."""
    w = tl.zeros([t.shape[0], grid.shape[0]], tl.float32)
    for h in range(selection.H):
        _, _, p, counts = _head_softmax(q, k, selection, b, h, t, grid, token_kept, grid_kept, DH, BLOCK_DH, PRECISION)
        w += tl.where(counts, p, 0.0)
    return w / selection.shares


@triton.jit
def grid_weights_kernel(
    q,  # [B,T,H,DH]
    k,  # [B,G,H,DH]
    selection,
    w_ptr,  # `new_weights` [B,T,G] float32
    DH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row."""
    T, G = selection.T, selection.G
    b, t, grid, token_kept, grid_kept = tokens_and_grids(selection, BLOCK_T, BLOCK_G)
    w = token_weights(q, k, selection, b, t, grid, token_kept, grid_kept, DH, BLOCK_DH, PRECISION)
    store_rows(w_ptr, b, t, T, grid, width_of_weights(G), w)


@triton.jit
def _score_gradients(p, counts, dw_ptr, selection, b, t, grid, PARTS: tl.constexpr = 1):  # pyright: ignore[reportArgumentType] (Triton makes it one)
    """ds = p (da - sum p da) scale, with da = dw / shares where an entry counts and 0 where not."""
    dw = tl.zeros(p.shape, tl.float32)
    for part in tl.static_range(PARTS):
        row = (b * selection.T + t[:, None]) * PARTS + part
        dw += tl.load(dw_ptr + row * selection.G + grid[None, :], mask=counts, other=0.0)
    da = dw / selection.shares
    return p * (da - tl.sum(p * da, 1)[:, None]) * selection.scale


@triton.jit(do_not_specialize=["B", "blocks_per_slot"])
def grid_weights_backward_kernel(
    q,  # [B,T,H,DH]
    k,  # [B,G,H,DH]
    selection,
    dw_ptr,  # [B,T,PARTS,G] float32, contiguous: parts of a sum
    dq_ptr,  # [B,T,H,DH], contiguous
    dk_ptr,  # [slots,B,G,H,DH] float32, contiguous: a part for each slot
    B,
    blocks_per_slot,  # how many blocks of tokens a program walks through
    DH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a head of a row and a slot of its tokens: dq = ds k, dk = ds^T q."""
    T, G = selection.T, selection.G
    H: tl.constexpr = selection.H
    b = (tl.program_id(0) // H).to(tl.int64)
    h = tl.program_id(0) % H
    slot = tl.program_id(1).to(tl.int64)
    grid = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_DH)
    grid_kept = kept(selection.grid_mask, b, grid, G)
    dk = tl.zeros([BLOCK_G, BLOCK_DH], tl.float32)
    for block in range(blocks_per_slot):
        t = (slot * blocks_per_slot + block) * BLOCK_T + tl.arange(0, BLOCK_T)
        token_kept = kept(selection.text_mask, b, t, T)
        q_tile, k_tile, p, counts = _head_softmax(
            q, k, selection, b, h, t, grid, token_kept, grid_kept, DH, BLOCK_DH, PRECISION
        )
        ds = _score_gradients(p, counts, dw_ptr, selection, b, t, grid, PARTS)
        dq_rows = dq_ptr + ((b * T + t[:, None]) * H + h) * DH + d[None, :]
        tl.store(dq_rows, dot(ds, k_tile, PRECISION), mask=(t < T)[:, None] & (d < DH)[None, :])
        dk += dot(tl.trans(ds), q_tile, PRECISION)
    dk_rows = dk_ptr + (((slot * B + b) * G + grid[:, None]) * H + h) * DH + d[None, :]
    tl.store(dk_rows, dk, mask=(grid < G)[:, None] & (d < DH)[None, :])


def grid_weights(
    q: Tensor, k: Tensor, selection: Selection, dtype_of_many: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Compute w [B,T,width] in float32; of many grids as `many_weights` does in a dtype."""
    (B, T, _, D_h), G = q.shape, k.shape[1]
    if G > MOST_GRIDS_IN_REGISTERS:
        return many_weights(q, k, selection, dtype_of_many)
    w = new_weights(B, T, G, dtype=torch.float32, device=q.device)
    block_t = 16 if G > 32 else BLOCK_OF_TOKENS
    launch(
        grid_weights_kernel,
        (B * triton.cdiv(T, block_t),),
        q=strided(q),
        k=strided(k),
        selection=selection_in_registers(selection, q, k),
        w_ptr=w,
        DH=D_h,
        BLOCK_T=block_t,
        BLOCK_G=block_of(G),
        BLOCK_DH=block_of(D_h),
        PRECISION=dot_precision(grid_weights_kernel, q, k),
        num_warps=4,
    )
    return w, None


def grid_weights_backward(dw: Tensor, q: Tensor, k: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Compute dq and dk in the dtypes of q and k, from dw [B,T,G] float32, contiguous."""
    if k.shape[1] > MOST_GRIDS_BESIDE_DK:
        return many_weights_backward(dw, q, k, selection)
    dq, dk = grid_weights_gradients(dw[:, :, None], q, k, selection)
    return dq, dk.sum(0).to(k.dtype)


def grid_weights_gradients(dw: Tensor, q: Tensor, k: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """Compute dq in the dtype of q, and dk [slots,B,G,H,D_h] float32 of each slot of tokens, for few grids.

    dw [B,T,parts,G] float32, contiguous, is a sum that has come in parts.
    """
    (B, T, H, D_h), G = q.shape, k.shape[1]
    dq = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    block_t = BLOCK_OF_TOKENS if q.dtype in HALF and k.dtype in HALF else 16
    slots, blocks_per_slot = slots_of(triton.cdiv(T, block_t), B * H)
    dk = torch.empty(slots, *k.shape, dtype=torch.float32, device=k.device)
    launch(
        grid_weights_backward_kernel,
        (B * H, slots),
        q=strided(q),
        k=strided(k),
        selection=selection_in_registers(selection, q, k),
        dw_ptr=dw,
        dq_ptr=dq,
        dk_ptr=dk,
        B=B,
        blocks_per_slot=blocks_per_slot,
        DH=D_h,
        BLOCK_T=block_t,
        BLOCK_G=block_of(G),
        BLOCK_DH=block_of(D_h),
        PARTS=dw.shape[2],
        PRECISION=dot_precision(grid_weights_backward_kernel, q, k),
        num_warps=4,
    )
    return dq, dk
