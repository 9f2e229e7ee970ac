"""The backward pass of FiLM by known weights with the residual and its LayerNorm, in Triton (docs/mathematics.md, 2a).

Shapes: B rows of T tokens and G grids, D columns; y, x, r [B,T,D], w [B,T,G], table [B,G,2D]. In kernels b is a number,
t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import strided
from ..common.triton_tiles import dot, dot_precision, token_block
from ..launch import launch
from .triton_modulation import (
    MOST_GRIDS_IN_PARTS,
    Film,
    modulation,
    new_sums,
    parameter_gradients,
    row_tile,
    store_column_sums,
    store_table_sums,
    table_tiles,
    tiles,
    weights_tile,
)
from .triton_rows import Norm, store_rows, table_from_rows, weights_from_rows


@triton.jit
def _residual_tile(y, x, gate, gamma, beta, b, t, d, T, D: tl.constexpr):
    """r = x + y (1 + gate gamma) + gate beta, [BLOCK_T, BLOCK_D]."""
    y_tile = row_tile(y, b, t, d, t < T, D)
    return row_tile(x, b, t, d, t < T, D) + y_tile * (1 + gate * gamma) + gate * beta


@triton.jit(do_not_specialize=["T", "G"])
def film_residual_backward_kernel(
    dr,  # [B,T,D]
    dnormed,  # [B,T,D] or None: no norm, or none that counts
    y,  # [B,T,D]
    x,  # [B,T,D]
    film,
    norm,  # or None
    dy_ptr,  # [B,T,D], contiguous
    dx_ptr,  # [B,T,D], contiguous
    e_ptr,  # [B,T,D] float32, contiguous: the gradient of r, or None
    dw_ptr,  # [B,T,G] float32, contiguous; None where sums.table is
    sums,
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row: sums over columns of the norm, if there is one, then gradients."""
    b, t = token_block(T, BLOCK_T)
    inside = t < T
    grid = tl.arange(0, BLOCK_G)
    gate = tl.load(film.gate).to(tl.float32)
    w = None
    dw = tl.zeros([BLOCK_T, BLOCK_G], tl.float32)
    if dw_ptr is not None:
        w = weights_tile(film.w, b, t, grid, T, G)

    sum_dn = tl.zeros([BLOCK_T], tl.float32)
    sum_dn_n = tl.zeros([BLOCK_T], tl.float32)
    mean, rstd = sum_dn, sum_dn  # of a norm, if there is one
    if dnormed is not None:
        mean = tl.load(norm.mean + b * T + t, mask=inside, other=0.0)
        rstd = tl.load(norm.rstd + b * T + t, mask=inside, other=0.0)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            gamma, beta = modulation(film, w, b, t, d, T, G, D, BLOCK_G, PRECISION)
            r = _residual_tile(y, x, gate, gamma, beta, b, t, d, T, D)
            ln_weight = tl.load(norm.weight + d, mask=d < D, other=0.0).to(tl.float32)
            dn = row_tile(dnormed, b, t, d, inside, D) * ln_weight[None, :]
            sum_dn += tl.sum(dn, 1)
            sum_dn_n += tl.sum(dn * (r - mean[:, None]) * rstd[:, None], 1)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, beta = modulation(film, w, b, t, d, T, G, D, BLOCK_G, PRECISION)
        y_tile = row_tile(y, b, t, d, inside, D)
        e = row_tile(dr, b, t, d, inside, D)
        dln_weight = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        dln_bias = dln_weight
        if dnormed is not None:
            r = row_tile(x, b, t, d, inside, D) + y_tile * (1 + gate * gamma) + gate * beta
            n = (r - mean[:, None]) * rstd[:, None]
            ln_weight = tl.load(norm.weight + d, mask=d < D, other=0.0).to(tl.float32)
            dln_bias = row_tile(dnormed, b, t, d, inside, D)
            dln_weight = dln_bias * n
            dn = dln_bias * ln_weight[None, :]
            e += (dn - (sum_dn / D)[:, None] - n * (sum_dn_n / D)[:, None]) * rstd[:, None]
        e = tl.where(inside[:, None] & (d < D)[None, :], e, 0.0)
        store_rows(dy_ptr, b, t, T, d, D, e * (1 + gate * gamma))
        store_rows(dx_ptr, b, t, T, d, D, e)
        if e_ptr is not None:
            store_rows(e_ptr, b, t, T, d, D, e)
        store_column_sums(sums, e, e * y_tile, dln_weight, dln_bias, d, D)
        if dw_ptr is not None:
            gamma_tile, beta_tile = table_tiles(film, b, grid, d, G, D)
            dw += dot(e * y_tile, tl.trans(gamma_tile), PRECISION) + dot(e, tl.trans(beta_tile), PRECISION)
            store_table_sums(sums, w, e, e * y_tile, d, G, D, BLOCK_G, PRECISION)
    if dw_ptr is not None:
        store_rows(dw_ptr, b, t, T, grid, G, dw * gate)


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
    (B, T, D), G = x.shape, w.shape[2]
    norm = None if ln_weight is None or statistics is None else Norm(ln_weight, None, *statistics)
    dy = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sizes = tiles(T, G, MOST_GRIDS_IN_PARTS, y, w, table, backward=True)
    programs = B * triton.cdiv(T, sizes["BLOCK_T"])
    sums, dw = new_sums(programs, w, table)
    e = torch.empty(x.shape if dw is None else 0, dtype=torch.float32, device=x.device)
    launch(
        film_residual_backward_kernel,
        (programs,),
        dr=strided(dr),
        dnormed=strided(dnormed),
        y=strided(y),
        x=strided(x),
        film=Film(strided(w), strided(table), None, bias, gate),
        norm=norm,
        dy_ptr=dy,
        dx_ptr=dx,
        e_ptr=e if dw is None else None,
        dw_ptr=dw,
        sums=sums,
        T=T,
        G=G,
        D=D,
        PRECISION=dot_precision(film_residual_backward_kernel, y, w, table),
        **sizes,
    )
    if dw is None:
        dw = weights_from_rows(e, table, None, None, None, y, gate=gate)
        dtable = table_from_rows(w, e, None, y)
    else:
        dtable = sums.table.view(B, -1, G, 2 * D).sum(1)
    dtable, dbias, dgate, dln_weight, dln_bias = parameter_gradients(dtable, sums.columns, table, bias, gate)
    gradients = (dy, dx, dw.to(w.dtype), dtable.to(table.dtype), dbias, dgate)
    if ln_weight is None:
        return gradients
    return *gradients, dln_weight.to(ln_weight.dtype), dln_bias.to(ln_weight.dtype)
