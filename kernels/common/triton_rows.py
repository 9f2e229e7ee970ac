"""Products between tokens' rows and a table of the grids, in Triton: by their weights, in all three directions.

    rows     e [B,T,D]                   table [B,G,D]        rows = w table, dw = e table^T, dtable = w^T e

With FiLM a row stands for two: the table has 2 D columns, gamma's half first, and the gradients of gamma and beta
are e u and e, where u is what was modulated, given as it is or as LayerNorm(u) from its statistics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch
from .triton_tiles import (
    block_of_tokens,
    dot,
    dot_precision,
    kept_grids,
    kept_tokens,
    pipeline_stages,
    slots_of,
    strides,
    token_block,
)

BLOCK_G, BLOCK_D = 32, 32


@triton.jit
def normalised(u, mean, rstd, ln_weight_ptr, ln_bias_ptr, d, d_inside):
    """LayerNorm of u [BLOCK_T, BLOCK_D] from its statistics: (n, weight, n weight + bias), n = (u - mean) rstd."""
    n = (u - mean[:, None]) * rstd[:, None]
    weight = tl.load(ln_weight_ptr + d, mask=d_inside, other=0.0).to(tl.float32)
    bias = tl.load(ln_bias_ptr + d, mask=d_inside, other=0.0).to(tl.float32)
    return n, weight, n * weight[None, :] + bias[None, :]


@triton.jit
def _film_rows(
    e_ptr, e_strides, u_ptr, u_strides, mean_ptr, rstd_ptr, ln_weight_ptr, ln_bias_ptr, b, t, T, d, D, token_kept
):  # fmt: skip
    """e and e u, [BLOCK_T, BLOCK_D] float32; without u, e twice."""
    inside = token_kept[:, None] & (d < D)[None, :]
    e = tl.load(
        e_ptr + b * e_strides[0] + t[:, None] * e_strides[1] + d[None, :] * e_strides[2], mask=inside, other=0.0
    )
    eu = e
    if u_ptr is not None:
        u_rows = u_ptr + b * u_strides[0] + t[:, None] * u_strides[1] + d[None, :] * u_strides[2]
        u = tl.load(u_rows, mask=inside, other=0.0).to(tl.float32)
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + b * T + t, mask=token_kept, other=0.0)
            rstd = tl.load(rstd_ptr + b * T + t, mask=token_kept, other=0.0)
            _, _, u = normalised(u, mean, rstd, ln_weight_ptr, ln_bias_ptr, d, d < D)
        eu = e.to(tl.float32) * u
    return e, eu


@triton.jit
def rows_from_table_kernel(
    w_ptr,  # [B,T,G]
    w_strides,
    table_ptr,  # [B,G,D]
    table_strides,
    grid_mask_ptr,  # [B,G] or None
    grid_mask_strides,
    out_ptr,  # [B,T,D]
    out_strides,
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a block of tokens of a row and a block of columns; it walks through the grids."""
    b, t = token_block(T, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in range(0, G, BLOCK_G):
        grid = start + tl.arange(0, BLOCK_G).to(tl.int64)
        grid_kept = kept_grids(grid_mask_ptr, grid_mask_strides, b, grid, G)
        w_tile = w_ptr + b * w_strides[0] + t[:, None] * w_strides[1] + grid[None, :] * w_strides[2]
        w = tl.load(w_tile, mask=(t < T)[:, None] & grid_kept[None, :], other=0.0)
        table_tile = table_ptr + b * table_strides[0] + grid[:, None] * table_strides[1] + d[None, :] * table_strides[2]
        acc += dot(w, tl.load(table_tile, mask=grid_kept[:, None] & (d < D)[None, :], other=0.0), PRECISION)
    out = out_ptr + b * out_strides[0] + t[:, None] * out_strides[1] + d[None, :] * out_strides[2]
    tl.store(out, acc, mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def weights_from_rows_kernel(
    e_ptr,  # [B,T,D]
    e_strides,
    u_ptr,  # [B,T,D] or None: no FiLM
    u_strides,
    mean_ptr,  # [B,T] float32, or None: u is not normalised
    rstd_ptr,
    ln_weight_ptr,
    ln_bias_ptr,
    table_ptr,  # [B,G,D], with FiLM [B,G,2D]
    table_strides,
    gate_ptr,  # a factor of the sum, or None
    grid_mask_ptr,  # [B,G] or None
    grid_mask_strides,
    text_mask_ptr,  # [B,T] or None
    text_mask_strides,
    dw_ptr,  # [B,T,G] or None: added
    dw_strides,
    out_ptr,  # [B,T,G] float32, contiguous
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a block of tokens of a row and a block of grids; it walks through the columns."""
    b, t = token_block(T, BLOCK_T)
    grid = tl.program_id(1).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    token_kept = kept_tokens(text_mask_ptr, text_mask_strides, b, t, T)
    grid_kept = kept_grids(grid_mask_ptr, grid_mask_strides, b, grid, G)
    table_rows = table_ptr + b * table_strides[0] + grid[None, :] * table_strides[1]
    acc = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        e, eu = _film_rows(
            e_ptr, e_strides, u_ptr, u_strides, mean_ptr, rstd_ptr, ln_weight_ptr, ln_bias_ptr, b, t, T, d, D,
            token_kept,
        )  # fmt: skip
        inside = (d < D)[:, None] & grid_kept[None, :]
        acc += dot(eu, tl.load(table_rows + d[:, None] * table_strides[2], mask=inside, other=0.0), PRECISION)
        if u_ptr is not None:
            acc += dot(e, tl.load(table_rows + (D + d)[:, None] * table_strides[2], mask=inside, other=0.0), PRECISION)
    if gate_ptr is not None:
        acc *= tl.load(gate_ptr).to(tl.float32)
    inside = (t < T)[:, None] & (grid < G)[None, :]
    if dw_ptr is not None:
        dw_tile = dw_ptr + b * dw_strides[0] + t[:, None] * dw_strides[1] + grid[None, :] * dw_strides[2]
        acc += tl.load(dw_tile, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + (b * T + t[:, None]) * G + grid[None, :], acc, mask=inside)


@triton.jit
def table_from_rows_kernel(
    w_ptr,  # [B,T,G]
    w_strides,
    e_ptr,  # [B,T,D]
    e_strides,
    u_ptr,  # [B,T,D] or None: no FiLM
    u_strides,
    mean_ptr,  # [B,T] float32, or None: u is not normalised
    rstd_ptr,
    ln_weight_ptr,
    ln_bias_ptr,
    text_mask_ptr,  # [B,T] or None
    text_mask_strides,
    out_ptr,  # [slots,B,G,D], with FiLM [slots,B,G,2D], float32, contiguous: a part for each slot
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
    """A program a row, a slot of its tokens, a block of grids and a block of columns; it walks through the tokens."""
    b = (tl.program_id(0) % B).to(tl.int64)
    slot = (tl.program_id(0) // B).to(tl.int64)
    grid = tl.program_id(1).to(tl.int64) * BLOCK_G + tl.arange(0, BLOCK_G)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    acc_beta = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    for block in range(blocks_per_slot):
        t = (slot * blocks_per_slot + block) * BLOCK_T + tl.arange(0, BLOCK_T)
        token_kept = kept_tokens(text_mask_ptr, text_mask_strides, b, t, T)
        e, eu = _film_rows(
            e_ptr, e_strides, u_ptr, u_strides, mean_ptr, rstd_ptr, ln_weight_ptr, ln_bias_ptr, b, t, T, d, D,
            token_kept,
        )  # fmt: skip
        w_tile = w_ptr + b * w_strides[0] + t[None, :] * w_strides[1] + grid[:, None] * w_strides[2]
        w = tl.load(w_tile, mask=token_kept[None, :] & (grid < G)[:, None], other=0.0)
        acc += dot(w, eu, PRECISION)
        if u_ptr is not None:
            acc_beta += dot(w, e, PRECISION)
    width = D if u_ptr is None else 2 * D
    rows = out_ptr + ((slot * B + b) * G + grid[:, None]) * width + d[None, :]
    inside = (grid < G)[:, None] & (d < D)[None, :]
    tl.store(rows, acc, mask=inside)
    if u_ptr is not None:
        tl.store(rows + D, acc_beta, mask=inside)


def _film_arguments(film: tuple | None) -> dict:
    """Of None (no FiLM), (u,) or (u, mean, rstd, ln_weight, ln_bias)."""
    u, mean, rstd, ln_weight, ln_bias = (*(film or ()), *[None] * 5)[:5]
    return {
        "u_ptr": u,
        "u_strides": strides(u),
        "mean_ptr": mean,
        "rstd_ptr": rstd,
        "ln_weight_ptr": ln_weight,
        "ln_bias_ptr": ln_bias,
    }


def _block_t(T: int, film: tuple | None) -> int:
    return block_of_tokens(T) if film is None else 16


def rows_from_table(w: Tensor, table: Tensor, grid_mask: Tensor | None, out: Tensor) -> None:
    """out [B,T,D] = w [B,T,G] table [B,G,D]; `out` may have any strides."""
    (B, T, G), D = w.shape, table.shape[2]
    launch(
        rows_from_table_kernel,
        (B * triton.cdiv(T, block_of_tokens(T)), triton.cdiv(D, BLOCK_D)),
        w,
        w.stride(),
        table,
        table.stride(),
        grid_mask,
        strides(grid_mask),
        out,
        out.stride(),
        T,
        G,
        D=D,
        BLOCK_T=block_of_tokens(T),
        BLOCK_G=BLOCK_G,
        BLOCK_D=BLOCK_D,
        PRECISION=dot_precision(rows_from_table_kernel, table),
        num_warps=4,
        num_stages=pipeline_stages(table),
    )


def weights_from_rows(
    e: Tensor,
    table: Tensor,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    dw: Tensor | None,
    film: tuple | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """dw + gate e table^T, [B,T,G] float32; `film` is (u,) or (u, mean, rstd, ln_weight, ln_bias) where e stands for
    the gradients [e u, e] of a FiLM."""
    (B, T, D), G = e.shape, table.shape[1]
    out = torch.empty(B, T, G, dtype=torch.float32, device=e.device)
    block_t, block_g = _block_t(T, film), 16 if G <= 16 else BLOCK_G
    launch(
        weights_from_rows_kernel,
        (B * triton.cdiv(T, block_t), triton.cdiv(G, block_g)),
        e_ptr=e,
        e_strides=e.stride(),
        **_film_arguments(film),
        table_ptr=table,
        table_strides=table.stride(),
        gate_ptr=gate,
        grid_mask_ptr=grid_mask,
        grid_mask_strides=strides(grid_mask),
        text_mask_ptr=text_mask,
        text_mask_strides=strides(text_mask),
        dw_ptr=dw,
        dw_strides=strides(dw),
        out_ptr=out,
        T=T,
        G=G,
        D=D,
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        BLOCK_D=BLOCK_D,
        PRECISION=dot_precision(weights_from_rows_kernel, e, table),
        num_warps=4,
        num_stages=pipeline_stages(e, table),
    )
    return out


def table_from_rows(w: Tensor, e: Tensor, text_mask: Tensor | None, film: tuple | None = None) -> Tensor:
    """w^T e, [B,G,D] float32, or with `film` (as in `weights_from_rows`) w^T [e u, e], [B,G,2D]."""
    (B, T, D), G = e.shape, w.shape[2]
    block_t, block_g = _block_t(T, film), 16 if G <= 16 else BLOCK_G
    blocks, tiles = triton.cdiv(T, block_t), (triton.cdiv(G, block_g), triton.cdiv(D, BLOCK_D))
    slots, blocks_per_slot = slots_of(blocks, B * tiles[0] * tiles[1])
    out = torch.empty(slots, B, G, D if film is None else 2 * D, dtype=torch.float32, device=e.device)
    launch(
        table_from_rows_kernel,
        (B * slots, *tiles),
        w_ptr=w,
        w_strides=w.stride(),
        e_ptr=e,
        e_strides=e.stride(),
        **_film_arguments(film),
        text_mask_ptr=text_mask,
        text_mask_strides=strides(text_mask),
        out_ptr=out,
        B=B,
        T=T,
        G=G,
        blocks_per_slot=blocks_per_slot,
        D=D,
        BLOCK_T=block_t,
        BLOCK_G=block_g,
        BLOCK_D=BLOCK_D,
        PRECISION=dot_precision(table_from_rows_kernel, e),
        num_warps=4,
        num_stages=pipeline_stages(e),
    )
    return out.sum(0)
