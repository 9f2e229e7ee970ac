"""The backward pass of FiLM by known weights of many grids with the residual, in Triton (docs/mathematics.md, 2a).

Shapes: B rows of T tokens and G grids, D columns; y, x, r [B,T,D], w [B,T,G], table [B,G,2D]. In kernels b is a number,
t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import strided
from ..common.triton_tiles import dot_precision, token_block
from ..launch import launch
from .triton_modulation import Film, modulation, parameter_gradients, residual_tile, row_tile, store_column_sums, tiles
from .triton_row_gradients import table_from_rows, weights_from_rows
from .triton_rows import Norm, load_statistics, store_rows


@triton.jit(do_not_specialize=["T", "G"])
def residual_many_backward_kernel(
    dr,  # [B,T,D]
    dnormed,  # [B,T,D] or None: no norm, or none that counts
    y,  # [B,T,D]
    x,  # [B,T,D]
    film,
    norm,  # or None
    dy_ptr,  # [B,T,D], contiguous
    dx_ptr,  # [B,T,D], contiguous
    e_ptr,  # [B,T,D] float32, contiguous: the gradient of r
    columns_ptr,  # [programs,4,D] float32, contiguous: sums over the tokens of each
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
    gate = tl.load(film.gate).to(tl.float32)

    sum_dn = tl.zeros([BLOCK_T], tl.float32)
    sum_dn_n = tl.zeros([BLOCK_T], tl.float32)
    mean, rstd = sum_dn, sum_dn  # of a norm, if there is one
    if dnormed is not None:
        mean, rstd = load_statistics(norm, b, t, T, inside)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            gamma, beta = modulation(film, None, b, t, d, T, G, D, BLOCK_G, PRECISION)
            r = residual_tile(row_tile(y, b, t, d, t < T, D), x, gate, gamma, beta, b, t, d, T, D)
            ln_weight = tl.load(norm.weight + d, mask=d < D, other=0.0).to(tl.float32)
            dn = row_tile(dnormed, b, t, d, inside, D) * ln_weight[None, :]
            sum_dn += tl.sum(dn, 1)
            sum_dn_n += tl.sum(dn * (r - mean[:, None]) * rstd[:, None], 1)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, beta = modulation(film, None, b, t, d, T, G, D, BLOCK_G, PRECISION)
        y_tile = row_tile(y, b, t, d, inside, D)
        e = row_tile(dr, b, t, d, inside, D)
        dln_weight = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        dln_bias = dln_weight
        if dnormed is not None:
            r = residual_tile(y_tile, x, gate, gamma, beta, b, t, d, T, D)
            n = (r - mean[:, None]) * rstd[:, None]
            ln_weight = tl.load(norm.weight + d, mask=d < D, other=0.0).to(tl.float32)
            dln_bias = row_tile(dnormed, b, t, d, inside, D)
            dln_weight = dln_bias * n
            dn = dln_bias * ln_weight[None, :]
            e += (dn - (sum_dn / D)[:, None] - n * (sum_dn_n / D)[:, None]) * rstd[:, None]
        e = tl.where(inside[:, None] & (d < D)[None, :], e, 0.0)
        store_rows(dy_ptr, b, t, T, d, D, e * (1 + gate * gamma))
        store_rows(dx_ptr, b, t, T, d, D, e)
        store_rows(e_ptr, b, t, T, d, D, e)
        store_column_sums(columns_ptr, e, e * y_tile, dln_weight, dln_bias, d, D)


def many_grids_residual_backward(
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
    e = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    sizes = tiles(B, T, G, 0, y, w, table, backward=True)
    programs = B * triton.cdiv(T, sizes["BLOCK_T"])
    columns = torch.empty(programs, 4, D, dtype=torch.float32, device=x.device)
    launch(
        residual_many_backward_kernel,
        (programs,),
        dr=strided(dr),
        dnormed=strided(dnormed),
        y=strided(y),
        x=strided(x),
        film=Film(strided(w), strided(table), None, bias, gate),
        norm=norm,
        dy_ptr=dy,
        dx_ptr=dx,
        e_ptr=e,
        columns_ptr=columns,
        T=T,
        G=G,
        D=D,
        PRECISION=dot_precision(residual_many_backward_kernel, y, w, table),
        **sizes,
    )
    dw = weights_from_rows(e, table, None, None, None, y, gate=gate)
    dtable = table_from_rows(w, e, G, None, y)
    dtable, dbias, dgate, dln_weight, dln_bias = parameter_gradients(dtable, columns, table, bias, gate)
    gradients = (dy, dx, dw.to(w.dtype), dtable.to(table.dtype), dbias, dgate)
    if ln_weight is None:
        return gradients
    return *gradients, dln_weight.to(ln_weight.dtype), dln_bias.to(ln_weight.dtype)
