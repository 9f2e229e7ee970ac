"""FiLM from the grid-side table in Triton.

A token's row is read twice by its program, the second time from the cache: once for the statistics of its LayerNorm,
once for what comes out. With [gamma, beta] = w table + bias, u what is modulated and e the gradient of
u (1 + gate gamma) + gate beta, the backward pass has

    du = e (1 + gate gamma)     dtable = gate w^T [e u, e]     dw = gate [e u, e] table^T     dbias = gate sum [e u, e]

and dgate = [e u, e] . [gamma, beta], which is the inner product of those sums, before the gate, with table and bias.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_rows import normalised, table_from_rows, weights_from_rows
from ..common.triton_tiles import (
    HALF,
    block_of,
    block_of_tokens,
    dot,
    dot_precision,
    kept_grids,
    kept_tokens,
    pipeline_stages,
    strides,
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

# Up to so many grids the sums over a block of tokens that make the table's gradient are kept block by block.
MOST_GRIDS_IN_PARTS = 16
# What a program asks of memory at once where nothing else takes its registers.
NUMBERS_OF_A_TILE = 4096


@triton.jit
def _modulation(
    w,  # [BLOCK_T, BLOCK_G], or None: read in blocks
    w_ptr,  # [B,T,G]
    w_strides,
    table_ptr,
    table_strides,
    bias_ptr,
    grid_mask_ptr,
    grid_mask_strides,
    b,
    t,
    d,
    T,
    G,
    D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """gamma and beta [BLOCK_T, BLOCK_D] of the columns d."""
    d_inside = d < D
    gamma = tl.zeros([t.shape[0], d.shape[0]], tl.float32)
    beta = tl.zeros([t.shape[0], d.shape[0]], tl.float32)
    if w is not None:
        gamma_tile, beta_tile = _table_tiles(
            table_ptr, table_strides, grid_mask_ptr, grid_mask_strides, b, tl.arange(0, BLOCK_G), d, G, D
        )
        gamma += dot(w, gamma_tile, PRECISION)
        beta += dot(w, beta_tile, PRECISION)
    else:
        for start in range(0, G, BLOCK_G):
            grid = start + tl.arange(0, BLOCK_G)
            w_block = _weights_block(w_ptr, w_strides, b, t, grid, T, G)
            gamma_tile, beta_tile = _table_tiles(
                table_ptr, table_strides, grid_mask_ptr, grid_mask_strides, b, grid, d, G, D
            )
            gamma += dot(w_block, gamma_tile, PRECISION)
            beta += dot(w_block, beta_tile, PRECISION)
    gamma += tl.load(bias_ptr + d, mask=d_inside, other=0.0).to(tl.float32)[None, :]
    beta += tl.load(bias_ptr + D + d, mask=d_inside, other=0.0).to(tl.float32)[None, :]
    return gamma, beta


@triton.jit
def _table_tiles(table_ptr, table_strides, grid_mask_ptr, grid_mask_strides, b, grid, d, G, D: tl.constexpr):
    """Gamma's and beta's half of the table [BLOCK_G, BLOCK_D]; masked grids are zero."""
    inside = kept_grids(grid_mask_ptr, grid_mask_strides, b, grid, G)[:, None] & (d < D)[None, :]
    rows = table_ptr + b * table_strides[0] + grid.to(tl.int64)[:, None] * table_strides[1]
    gamma = tl.load(rows + d[None, :] * table_strides[2], mask=inside, other=0.0)
    beta = tl.load(rows + (D + d)[None, :] * table_strides[2], mask=inside, other=0.0)
    return gamma, beta


@triton.jit
def _weights_block(w_ptr, w_strides, b, t, grid, T, G):
    tile = w_ptr + b * w_strides[0] + t[:, None] * w_strides[1] + grid.to(tl.int64)[None, :] * w_strides[2]
    return tl.load(tile, mask=(t < T)[:, None] & (grid < G)[None, :], other=0.0)


@triton.jit
def _row_block(x_ptr, x_strides, b, t, d, kept, D: tl.constexpr):
    """x [BLOCK_T, BLOCK_D] in float32, zero where a token is not kept."""
    tile = x_ptr + b * x_strides[0] + t[:, None] * x_strides[1] + d[None, :] * x_strides[2]
    return tl.load(tile, mask=kept[:, None] & (d < D)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _merge_statistics(x, mean, m2, start, d, D: tl.constexpr):
    """Mean and sum of squared deviations of the columns so far, `start` of them, and the block x (Chan et al. 1979)."""
    count = tl.minimum(D - start, d.shape[0])
    inside = (d < D)[None, :]
    block_mean = tl.sum(tl.where(inside, x, 0.0), 1) / count
    deviation = tl.where(inside, x - block_mean[:, None], 0.0)
    delta = block_mean - mean
    share = count / (start + count)
    return mean + delta * share, m2 + tl.sum(deviation * deviation, 1) + delta * delta * start * share


@triton.jit
def grounded_film_kernel(
    x_ptr,  # [B,T,D]
    x_strides,
    q_ptr,  # [B,T,H,DH]
    q_strides,
    k_ptr,  # [B,G,H,DH]
    k_strides,
    table_ptr,  # [B,G,2D]
    table_strides,
    bias_ptr,  # [2D]
    gate_ptr,  # one number
    ln_weight_ptr,  # [D]
    ln_bias_ptr,  # [D]
    grid_mask_ptr,  # [B,G] or None
    grid_mask_strides,
    text_mask_ptr,  # [B,T] or None
    text_mask_strides,
    seed_ptr,  # one int64, or None: no dropout
    w_ptr,  # [B,T,G], contiguous: written where IN_REGISTERS, else read
    x_f_ptr,  # [B,T,D], contiguous
    mean_ptr,  # [B,T] float32, contiguous
    rstd_ptr,
    T,
    G,
    K,
    scale,
    drop_threshold,
    shares,
    eps,
    H: tl.constexpr,
    DH: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_LN: tl.constexpr,  # columns at a time for the statistics: the pass that waits for memory
    RENORMALIZE: tl.constexpr,
    SELECT: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a block of tokens of a row: w, the statistics of x, then x_f a block of columns at a time."""
    b, t = token_block(T, BLOCK_T)
    token_kept = kept_tokens(text_mask_ptr, text_mask_strides, b, t, T)
    w = None
    if IN_REGISTERS:
        grid = tl.arange(0, BLOCK_G)
        grid_kept = kept_grids(grid_mask_ptr, grid_mask_strides, b, grid, G)
        w = token_weights(
            q_ptr, q_strides, k_ptr, k_strides, seed_ptr, b, t, grid, token_kept, grid_kept, T, G, K, scale,
            drop_threshold, shares, H, DH, BLOCK_DH, RENORMALIZE, SELECT, PRECISION,
        )  # fmt: skip
        tl.store(w_ptr + (b * T + t[:, None]) * G + grid[None, :], w, mask=(t < T)[:, None] & (grid < G)[None, :])

    w_strides = (T * G, G, 1)
    mean = tl.zeros([BLOCK_T], tl.float32)
    m2 = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, D, BLOCK_LN):
        d = start + tl.arange(0, BLOCK_LN)
        x = _row_block(x_ptr, x_strides, b, t, d, token_kept, D)
        mean, m2 = _merge_statistics(x, mean, m2, start, d, D)
    rstd = 1 / tl.sqrt(m2 / D + eps)
    tl.store(mean_ptr + b * T + t, mean, mask=t < T)
    tl.store(rstd_ptr + b * T + t, rstd, mask=t < T)

    gate = tl.load(gate_ptr).to(tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, beta = _modulation(
            w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, grid_mask_ptr, grid_mask_strides, b, t, d, T, G,
            D, BLOCK_G, PRECISION,
        )  # fmt: skip
        x = _row_block(x_ptr, x_strides, b, t, d, token_kept, D)
        _, _, normed = normalised(x, mean, rstd, ln_weight_ptr, ln_bias_ptr, d, d < D)
        x_f = tl.where(token_kept[:, None], normed * (1 + gate * gamma) + gate * beta, 0.0)
        tl.store(x_f_ptr + (b * T + t[:, None]) * D + d[None, :], x_f, mask=(t < T)[:, None] & (d < D)[None, :])


@triton.jit
def film_residual_kernel(
    y_ptr,  # [B,T,D]
    y_strides,
    x_ptr,  # [B,T,D]
    x_strides,
    w_ptr,  # [B,T,G]
    w_strides,
    table_ptr,  # [B,G,2D]
    table_strides,
    bias_ptr,  # [2D]
    gate_ptr,  # one number
    ln_weight_ptr,  # [D], or None: r alone
    ln_bias_ptr,
    r_ptr,  # [B,T,D], contiguous
    normed_ptr,  # [B,T,D], contiguous, or None
    mean_ptr,  # [B,T] float32, contiguous, or None
    rstd_ptr,
    T,
    G,
    eps,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a block of tokens of a row: r and its statistics, then r again for LN(r), which sees it unrounded."""
    b, t = token_block(T, BLOCK_T)
    inside = t < T
    w = None
    if IN_REGISTERS:
        w = _weights_block(w_ptr, w_strides, b, t, tl.arange(0, BLOCK_G), T, G)
    gate = tl.load(gate_ptr).to(tl.float32)
    mean = tl.zeros([BLOCK_T], tl.float32)
    m2 = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        r = _residual_block(
            y_ptr, y_strides, x_ptr, x_strides, w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, gate, b, t, d,
            T, G, D, BLOCK_G, PRECISION,
        )  # fmt: skip
        tl.store(r_ptr + (b * T + t[:, None]) * D + d[None, :], r, mask=inside[:, None] & (d < D)[None, :])
        mean, m2 = _merge_statistics(r, mean, m2, start, d, D)
    if normed_ptr is not None:
        rstd = 1 / tl.sqrt(m2 / D + eps)
        tl.store(mean_ptr + b * T + t, mean, mask=inside)
        tl.store(rstd_ptr + b * T + t, rstd, mask=inside)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            r = _residual_block(
                y_ptr, y_strides, x_ptr, x_strides, w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, gate, b, t,
                d, T, G, D, BLOCK_G, PRECISION,
            )  # fmt: skip
            _, _, normed = normalised(r, mean, rstd, ln_weight_ptr, ln_bias_ptr, d, d < D)
            rows = normed_ptr + (b * T + t[:, None]) * D + d[None, :]
            tl.store(rows, normed, mask=inside[:, None] & (d < D)[None, :])


@triton.jit
def _residual_block(
    y_ptr, y_strides, x_ptr, x_strides, w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, gate, b, t, d, T, G,
    D: tl.constexpr, BLOCK_G: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """r = x + y (1 + gate gamma) + gate beta, [BLOCK_T, BLOCK_D]."""
    gamma, beta = _modulation(
        w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, None, None, b, t, d, T, G, D, BLOCK_G, PRECISION
    )
    y = _row_block(y_ptr, y_strides, b, t, d, t < T, D)
    return _row_block(x_ptr, x_strides, b, t, d, t < T, D) + y * (1 + gate * gamma) + gate * beta


@triton.jit
def _store_sums(sums_ptr, e, eu, extra, extra_2, d, D: tl.constexpr):
    """Sums over the block of tokens, to this program's four rows of D: e u, e, and two more."""
    row = sums_ptr + tl.program_id(0).to(tl.int64) * 4 * D + d
    tl.store(row, tl.sum(eu, 0), mask=d < D)
    tl.store(row + D, tl.sum(e, 0), mask=d < D)
    tl.store(row + 2 * D, tl.sum(extra, 0), mask=d < D)
    tl.store(row + 3 * D, tl.sum(extra_2, 0), mask=d < D)


@triton.jit
def _store_parts(parts_ptr, w, e, eu, d, G, D: tl.constexpr, BLOCK_G: tl.constexpr, PRECISION: tl.constexpr):
    """w^T [e u, e] of the block of tokens, to this program's [G,2D]."""
    grid = tl.arange(0, BLOCK_G)
    rows = parts_ptr + (tl.program_id(0).to(tl.int64) * G + grid[:, None]) * 2 * D + d[None, :]
    inside = (grid < G)[:, None] & (d < D)[None, :]
    tl.store(rows, dot(tl.trans(w), eu, PRECISION), mask=inside)
    tl.store(rows + D, dot(tl.trans(w), e, PRECISION), mask=inside)


@triton.jit
def grounded_film_backward_kernel(
    dx_f_ptr,  # [B,T,D]
    dx_f_strides,
    dw_in_ptr,  # [B,T,G] or None: the gradient of w itself
    dw_in_strides,
    x_ptr,  # [B,T,D]
    x_strides,
    w_ptr,  # [B,T,G] float32, contiguous
    table_ptr,  # [B,G,2D]
    table_strides,
    bias_ptr,  # [2D]
    gate_ptr,  # one number
    ln_weight_ptr,  # [D]
    ln_bias_ptr,  # [D]
    grid_mask_ptr,  # [B,G] or None
    grid_mask_strides,
    text_mask_ptr,  # [B,T] or None
    text_mask_strides,
    mean_ptr,  # [B,T] float32, contiguous
    rstd_ptr,
    dx_ptr,  # [B,T,D], contiguous
    dw_ptr,  # [B,T,G] float32, contiguous; where IN_PARTS
    sums_ptr,  # [programs,4,D] float32: e u, e, and the gradients of the norm's weight and bias
    parts_ptr,  # [programs,G,2D] float32; where IN_PARTS
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IN_PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a block of tokens of a row: the sums over columns, dw among them, then dx and sums over tokens."""
    b, t = token_block(T, BLOCK_T)
    grid = tl.arange(0, BLOCK_G)
    token_kept = kept_tokens(text_mask_ptr, text_mask_strides, b, t, T)
    mean = tl.load(mean_ptr + b * T + t, mask=t < T, other=0.0)
    rstd = tl.load(rstd_ptr + b * T + t, mask=t < T, other=0.0)
    gate = tl.load(gate_ptr).to(tl.float32)
    w_strides = (T * G, G, 1)
    w = None
    if IN_PARTS:
        w = _weights_block(w_ptr, w_strides, b, t, grid, T, G)
        dw = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)

    sum_dn = tl.zeros([BLOCK_T], tl.float32)
    sum_dn_n = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, _ = _modulation(
            w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, grid_mask_ptr, grid_mask_strides, b, t, d, T, G,
            D, BLOCK_G, PRECISION,
        )  # fmt: skip
        e = _row_block(dx_f_ptr, dx_f_strides, b, t, d, token_kept, D)
        x = _row_block(x_ptr, x_strides, b, t, d, token_kept, D)
        n, ln_weight, normed = normalised(x, mean, rstd, ln_weight_ptr, ln_bias_ptr, d, d < D)
        dn = e * (1 + gate * gamma) * ln_weight[None, :]
        sum_dn += tl.sum(dn, 1)
        sum_dn_n += tl.sum(dn * n, 1)
        if IN_PARTS:
            gamma_tile, beta_tile = _table_tiles(
                table_ptr, table_strides, grid_mask_ptr, grid_mask_strides, b, grid, d, G, D
            )
            dw += dot(e * normed, tl.trans(gamma_tile), PRECISION) + dot(e, tl.trans(beta_tile), PRECISION)
    if IN_PARTS:
        dw *= gate
        if dw_in_ptr is not None:
            dw += _weights_block(dw_in_ptr, dw_in_strides, b, t, grid, T, G).to(tl.float32)
        tl.store(dw_ptr + (b * T + t[:, None]) * G + grid[None, :], dw, mask=(t < T)[:, None] & (grid < G)[None, :])

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, _ = _modulation(
            w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, grid_mask_ptr, grid_mask_strides, b, t, d, T, G,
            D, BLOCK_G, PRECISION,
        )  # fmt: skip
        e = _row_block(dx_f_ptr, dx_f_strides, b, t, d, token_kept, D)
        x = _row_block(x_ptr, x_strides, b, t, d, token_kept, D)
        n, ln_weight, normed = normalised(x, mean, rstd, ln_weight_ptr, ln_bias_ptr, d, d < D)
        dnormed = e * (1 + gate * gamma)
        dx = (dnormed * ln_weight[None, :] - (sum_dn / D)[:, None] - n * (sum_dn_n / D)[:, None]) * rstd[:, None]
        dx = tl.where(token_kept[:, None], dx, 0.0)
        tl.store(dx_ptr + (b * T + t[:, None]) * D + d[None, :], dx, mask=(t < T)[:, None] & (d < D)[None, :])
        _store_sums(sums_ptr, e, e * normed, dnormed * n, dnormed, d, D)
        if IN_PARTS:
            _store_parts(parts_ptr, w, e, e * normed, d, G, D, BLOCK_G, PRECISION)


@triton.jit
def film_residual_backward_kernel(
    dr_ptr,  # [B,T,D] or None
    dr_strides,
    dnormed_ptr,  # [B,T,D] or None: no norm, or none that counts
    dnormed_strides,
    y_ptr,  # [B,T,D]
    y_strides,
    x_ptr,  # [B,T,D]
    x_strides,
    w_ptr,  # [B,T,G]
    w_strides,
    table_ptr,  # [B,G,2D]
    table_strides,
    bias_ptr,  # [2D]
    gate_ptr,  # one number
    ln_weight_ptr,  # [D] or None
    mean_ptr,  # [B,T] float32, contiguous, or None
    rstd_ptr,
    dy_ptr,  # [B,T,D], contiguous
    dx_ptr,  # [B,T,D], contiguous
    e_ptr,  # [B,T,D] float32, contiguous: the gradient of r, or None
    dw_ptr,  # [B,T,G] float32, contiguous; where IN_PARTS
    sums_ptr,  # [programs,4,D] float32: e u, e, and the gradients of the norm's weight and bias
    parts_ptr,  # [programs,G,2D] float32; where IN_PARTS
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IN_PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a block of tokens of a row: the norm's sums over columns, if there is one, then all gradients."""
    b, t = token_block(T, BLOCK_T)
    inside = t < T
    grid = tl.arange(0, BLOCK_G)
    gate = tl.load(gate_ptr).to(tl.float32)
    w = None
    if IN_PARTS:
        w = _weights_block(w_ptr, w_strides, b, t, grid, T, G)
        dw = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)

    if dnormed_ptr is not None:
        mean = tl.load(mean_ptr + b * T + t, mask=inside, other=0.0)
        rstd = tl.load(rstd_ptr + b * T + t, mask=inside, other=0.0)
        sum_dn = tl.zeros([BLOCK_T], tl.float32)
        sum_dn_n = tl.zeros([BLOCK_T], tl.float32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            r = _residual_block(
                y_ptr, y_strides, x_ptr, x_strides, w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, gate, b, t,
                d, T, G, D, BLOCK_G, PRECISION,
            )  # fmt: skip
            ln_weight = tl.load(ln_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
            dn = _row_block(dnormed_ptr, dnormed_strides, b, t, d, inside, D) * ln_weight[None, :]
            sum_dn += tl.sum(dn, 1)
            sum_dn_n += tl.sum(dn * (r - mean[:, None]) * rstd[:, None], 1)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, beta = _modulation(
            w, w_ptr, w_strides, table_ptr, table_strides, bias_ptr, None, None, b, t, d, T, G, D, BLOCK_G, PRECISION
        )
        y = _row_block(y_ptr, y_strides, b, t, d, inside, D)
        e = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        dln_weight = e
        dln_bias = e
        if dr_ptr is not None:
            e += _row_block(dr_ptr, dr_strides, b, t, d, inside, D)
        if dnormed_ptr is not None:
            r = _row_block(x_ptr, x_strides, b, t, d, inside, D) + y * (1 + gate * gamma) + gate * beta
            n = (r - mean[:, None]) * rstd[:, None]
            ln_weight = tl.load(ln_weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
            dln_bias = _row_block(dnormed_ptr, dnormed_strides, b, t, d, inside, D)
            dln_weight = dln_bias * n
            dn = dln_bias * ln_weight[None, :]
            e += (dn - (sum_dn / D)[:, None] - n * (sum_dn_n / D)[:, None]) * rstd[:, None]
        e = tl.where(inside[:, None] & (d < D)[None, :], e, 0.0)
        rows = (b * T + t[:, None]) * D + d[None, :]
        stored = inside[:, None] & (d < D)[None, :]
        tl.store(dy_ptr + rows, e * (1 + gate * gamma), mask=stored)
        tl.store(dx_ptr + rows, e, mask=stored)
        if e_ptr is not None:
            tl.store(e_ptr + rows, e, mask=stored)
        _store_sums(sums_ptr, e, e * y, dln_weight, dln_bias, d, D)
        if IN_PARTS:
            gamma_tile, beta_tile = _table_tiles(table_ptr, table_strides, None, None, b, grid, d, G, D)
            dw += dot(e * y, tl.trans(gamma_tile), PRECISION) + dot(e, tl.trans(beta_tile), PRECISION)
            _store_parts(parts_ptr, w, e, e * y, d, G, D, BLOCK_G, PRECISION)
    if IN_PARTS:
        rows = dw_ptr + (b * T + t[:, None]) * G + grid[None, :]
        tl.store(rows, dw * gate, mask=inside[:, None] & (grid < G)[None, :])


def _tiles(T: int, G: int, most_grids: int, *tensors: Tensor, backward: bool = False) -> dict:
    """Blocks, warps and stages of a kernel that holds w of up to `most_grids` grids and walks through the columns.

    The largest of those tried that spill nothing for any of the targets of the compile report.
    """
    half = all(tensor.dtype in HALF for tensor in tensors)
    few = most_grids >= G
    return {
        "BLOCK_T": block_of_tokens(T) if half and (G <= 32 or not few) else 16,
        "BLOCK_G": block_of(G) if few else 32,
        "BLOCK_D": (32 if half or not few else 16) if backward else (64 if half else 32),
        "num_warps": 4,
        "num_stages": 1 if backward else pipeline_stages(*tensors),
    }


def grounded_film(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    eps: float,
    *options,
) -> tuple[Tensor, Tensor, Tensor]:
    """x_f in the dtype of x, w in the dtype of q, and mean and 1 / deviation of the rows of x, [2,B,T] float32.

    `options` from top_k on as in `weight_arguments`.
    """
    (B, T, D), G = x.shape, k.shape[1]
    x_f = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    statistics = torch.empty(2, B, T, dtype=torch.float32, device=x.device)
    in_registers = G <= MOST_GRIDS_IN_REGISTERS
    w = torch.empty(B, T, G, dtype=q.dtype, device=x.device) if in_registers else grid_weights(q, k, *options)
    tiles = _tiles(T, G, MOST_GRIDS_IN_REGISTERS, x, table)
    launch(
        grounded_film_kernel,
        (B * triton.cdiv(T, tiles["BLOCK_T"]),),
        **weight_arguments(q, k, *options),
        x_ptr=x,
        x_strides=x.stride(),
        table_ptr=table,
        table_strides=table.stride(),
        bias_ptr=bias,
        gate_ptr=gate,
        ln_weight_ptr=ln_weight,
        ln_bias_ptr=ln_bias,
        w_ptr=w,
        x_f_ptr=x_f,
        mean_ptr=statistics[0],
        rstd_ptr=statistics[1],
        eps=eps,
        D=D,
        BLOCK_LN=min(block_of(D), NUMBERS_OF_A_TILE // tiles["BLOCK_T"]),
        IN_REGISTERS=in_registers,
        PRECISION=dot_precision(grounded_film_kernel, q, k, table),
        **tiles,
    )
    return x_f, w.to(q.dtype), statistics


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
    *options,
) -> tuple[Tensor, ...]:
    """The gradients of x, q, k, table, bias, gate, ln_weight and ln_bias, in their dtypes; dw None is zero."""
    (B, T, D), G = x.shape, k.shape[1]
    _, grid_mask, text_mask = options[:3]
    mean, rstd = statistics
    w = grid_weights(q, k, *options)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    in_parts = G <= MOST_GRIDS_IN_PARTS
    tiles = _tiles(T, G, MOST_GRIDS_IN_PARTS, dx_f, x, table, backward=True)
    programs = B * triton.cdiv(T, tiles["BLOCK_T"])
    sums, parts, dw_tile = _partial_sums(in_parts, programs, B, T, G, D, x.device)
    launch(
        grounded_film_backward_kernel,
        (programs,),
        dx_f_ptr=dx_f,
        dx_f_strides=dx_f.stride(),
        dw_in_ptr=dw,
        dw_in_strides=strides(dw),
        x_ptr=x,
        x_strides=x.stride(),
        w_ptr=w,
        table_ptr=table,
        table_strides=table.stride(),
        bias_ptr=bias,
        gate_ptr=gate,
        ln_weight_ptr=ln_weight,
        ln_bias_ptr=ln_bias,
        grid_mask_ptr=grid_mask,
        grid_mask_strides=strides(grid_mask),
        text_mask_ptr=text_mask,
        text_mask_strides=strides(text_mask),
        mean_ptr=mean,
        rstd_ptr=rstd,
        dx_ptr=dx,
        dw_ptr=dw_tile,
        sums_ptr=sums,
        parts_ptr=parts,
        T=T,
        G=G,
        D=D,
        IN_PARTS=in_parts,
        PRECISION=dot_precision(grounded_film_backward_kernel, dx_f, x, table),
        **tiles,
    )
    if in_parts:
        dtable = parts.view(B, -1, G, 2 * D).sum(1)
    else:
        film = (x, mean, rstd, ln_weight, ln_bias)
        dw_tile = weights_from_rows(dx_f, table, grid_mask, text_mask, dw, film, gate)
        dtable = table_from_rows(w, dx_f, text_mask, film)
    dq, dk = grid_weights_backward(dw_tile, q, k, *options)
    known = table if grid_mask is None else table.masked_fill(~grid_mask[:, :, None], 0)
    dtable, dbias, dgate, dln_weight, dln_bias = _parameter_gradients(dtable, sums, known, bias, gate)
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


def film_residual(
    y: Tensor,
    x: Tensor,
    w: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """r in the dtype of x; with a norm LN(r) in the dtype of y, and the statistics of r as in `grounded_film`."""
    (B, T, D), G = x.shape, w.shape[2]
    r = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = statistics = None
    if ln_weight is not None:
        normed = torch.empty(y.shape, dtype=y.dtype, device=y.device)
        statistics = torch.empty(2, B, T, dtype=torch.float32, device=x.device)
    mean, rstd = (None, None) if statistics is None else statistics
    tiles = _tiles(T, G, MOST_GRIDS_IN_REGISTERS, w, table)
    launch(
        film_residual_kernel,
        (B * triton.cdiv(T, tiles["BLOCK_T"]),),
        y_ptr=y,
        y_strides=y.stride(),
        x_ptr=x,
        x_strides=x.stride(),
        w_ptr=w,
        w_strides=w.stride(),
        table_ptr=table,
        table_strides=table.stride(),
        bias_ptr=bias,
        gate_ptr=gate,
        ln_weight_ptr=ln_weight,
        ln_bias_ptr=ln_bias,
        r_ptr=r,
        normed_ptr=normed,
        mean_ptr=mean,
        rstd_ptr=rstd,
        T=T,
        G=G,
        eps=eps,
        D=D,
        IN_REGISTERS=G <= MOST_GRIDS_IN_REGISTERS,
        PRECISION=dot_precision(film_residual_kernel, w, table),
        **tiles,
    )
    return r, normed, statistics


def film_residual_backward(
    dr: Tensor | None,
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
    """The gradients of y, x, w, table, bias, gate and a norm's ln_weight and ln_bias; dr or dnormed None is zero."""
    (B, T, D), G = x.shape, w.shape[2]
    mean, rstd = (None, None) if statistics is None else statistics
    dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    in_parts = G <= MOST_GRIDS_IN_PARTS
    e = None if in_parts else torch.empty(x.shape, dtype=torch.float32, device=x.device)
    tiles = _tiles(T, G, MOST_GRIDS_IN_PARTS, y, w, table, backward=True)
    programs = B * triton.cdiv(T, tiles["BLOCK_T"])
    sums, parts, dw = _partial_sums(in_parts, programs, B, T, G, D, x.device)
    launch(
        film_residual_backward_kernel,
        (programs,),
        dr_ptr=dr,
        dr_strides=strides(dr),
        dnormed_ptr=dnormed,
        dnormed_strides=strides(dnormed),
        y_ptr=y,
        y_strides=y.stride(),
        x_ptr=x,
        x_strides=x.stride(),
        w_ptr=w,
        w_strides=w.stride(),
        table_ptr=table,
        table_strides=table.stride(),
        bias_ptr=bias,
        gate_ptr=gate,
        ln_weight_ptr=ln_weight,
        mean_ptr=mean,
        rstd_ptr=rstd,
        dy_ptr=dy,
        dx_ptr=dx,
        e_ptr=e,
        dw_ptr=dw,
        sums_ptr=sums,
        parts_ptr=parts,
        T=T,
        G=G,
        D=D,
        IN_PARTS=in_parts,
        PRECISION=dot_precision(film_residual_backward_kernel, y, w, table),
        **tiles,
    )
    if in_parts:
        dtable = parts.view(B, -1, G, 2 * D).sum(1)
    else:
        dw = weights_from_rows(e, table, None, None, None, (y,), gate)
        dtable = table_from_rows(w, e, None, (y,))
    dtable, dbias, dgate, dln_weight, dln_bias = _parameter_gradients(dtable, sums, table, bias, gate)
    gradients = (dy, dx, dw.to(w.dtype), dtable.to(table.dtype), dbias, dgate)
    if ln_weight is None:
        return gradients
    return *gradients, dln_weight.to(ln_weight.dtype), dln_bias.to(ln_weight.dtype)


def _partial_sums(in_parts: bool, programs: int, B: int, T: int, G: int, D: int, device: torch.device):
    """sums [programs,4,D], and where IN_PARTS parts [programs,G,2D] and dw [B,T,G]."""
    new = {"dtype": torch.float32, "device": device}
    sums = torch.empty(programs, 4, D, **new)
    return sums, *((torch.empty(programs, G, 2 * D, **new), torch.empty(B, T, G, **new)) if in_parts else (None, None))


def _parameter_gradients(dtable: Tensor, sums: Tensor, table: Tensor, bias: Tensor, gate: Tensor):
    """dtable with the gate in it, and dbias, dgate, dln_weight and dln_bias, from sums over blocks of tokens."""
    dbias = sums[:, :2].sum(0).flatten()
    dgate = (dtable * table.float()).sum() + (dbias * bias.float()).sum()
    factor = gate.float().reshape(())
    dbias = (factor * dbias).to(bias.dtype)
    return factor * dtable, dbias, dgate.to(gate.dtype).reshape(gate.shape), sums[:, 2].sum(0), sums[:, 3].sum(0)
