"""Token-grid correlation in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_rows import rows_from_table, table_from_rows, weights_from_rows
from ..common.triton_tiles import (
    block_of,
    block_of_tokens,
    dot,
    dot_precision,
    kept_grids,
    kept_tokens,
    token_block,
)
from ..common.triton_weights import (
    MOST_GRIDS_IN_REGISTERS,
    grid_weights,
    grid_weights_backward,
    token_weights,
    weight_arguments,
)
from ..launch import launch

BLOCK_D = 64


@triton.jit
def correlation_context_kernel(
    q_ptr,  # [B,T,H,DH]
    q_strides,
    k_ptr,  # [B,G,H,DH]
    k_strides,
    v_ptr,  # [B,G,D]
    v_strides,
    grid_mask_ptr,  # [B,G] or None
    grid_mask_strides,
    text_mask_ptr,  # [B,T] or None
    text_mask_strides,
    seed_ptr,  # one int64, or None: no dropout
    c_ptr,  # [B,T,D], contiguous
    w_ptr,  # [B,T,G], contiguous
    T,
    G,
    K,
    scale,
    drop_threshold,
    shares,
    H: tl.constexpr,
    DH: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    SELECT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a block of tokens of a row: w in registers, then c = w v a block of columns at a time."""
    b, t = token_block(T, BLOCK_T)
    grid = tl.arange(0, BLOCK_G)
    token_kept = kept_tokens(text_mask_ptr, text_mask_strides, b, t, T)
    grid_kept = kept_grids(grid_mask_ptr, grid_mask_strides, b, grid, G)
    w = token_weights(
        q_ptr, q_strides, k_ptr, k_strides, seed_ptr, b, t, grid, token_kept, grid_kept, T, G, K, scale,
        drop_threshold, shares, H, DH, BLOCK_DH, RENORMALIZE, SELECT, PRECISION,
    )  # fmt: skip
    tl.store(w_ptr + (b * T + t[:, None]) * G + grid[None, :], w, mask=(t < T)[:, None] & (grid < G)[None, :])
    v_rows = v_ptr + b * v_strides[0] + grid.to(tl.int64)[:, None] * v_strides[1]
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        v = tl.load(v_rows + d[None, :] * v_strides[2], mask=grid_kept[:, None] & (d < D)[None, :], other=0.0)
        c = dot(w, v, PRECISION)
        tl.store(c_ptr + (b * T + t[:, None]) * D + d[None, :], c, mask=(t < T)[:, None] & (d < D)[None, :])


def correlation_context(q: Tensor, k: Tensor, v: Tensor, *options) -> tuple[Tensor, Tensor]:
    """c in the dtype of v, w in the dtype of q; `options` from top_k on as in `weight_arguments`."""
    (B, T), (G, D) = q.shape[:2], v.shape[1:]
    c = torch.empty(B, T, D, dtype=v.dtype, device=v.device)
    if G > MOST_GRIDS_IN_REGISTERS:
        w = grid_weights(q, k, *options)
        rows_from_table(w, v, options[1], out=c)
        return c, w.to(q.dtype)
    w = torch.empty(B, T, G, dtype=q.dtype, device=q.device)
    block_t = 16 if G > 32 else block_of_tokens(T)
    launch(
        correlation_context_kernel,
        (B * triton.cdiv(T, block_t),),
        **weight_arguments(q, k, *options),
        v_ptr=v,
        v_strides=v.stride(),
        c_ptr=c,
        w_ptr=w,
        D=D,
        BLOCK_T=block_t,
        BLOCK_G=block_of(G),
        BLOCK_D=BLOCK_D,
        PRECISION=dot_precision(correlation_context_kernel, q, k, v),
        num_warps=4,
    )
    return c, w


def correlation_context_backward(
    dc: Tensor, dw: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *options
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv in the dtypes of q, k and v; dw None is zero."""
    _, grid_mask, text_mask = options[:3]
    dv = table_from_rows(grid_weights(q, k, *options), dc, text_mask).to(v.dtype)
    dq, dk = grid_weights_backward(weights_from_rows(dc, v, grid_mask, text_mask, dw), q, k, *options)
    return dq, dk, dv
