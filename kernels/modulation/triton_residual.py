"""FiLM by known weights with the residual, and the LayerNorm of their sum, in Triton (docs/mathematics.md, 2a).

Shapes: B rows of T tokens and G grids, D columns; y, x, r [B,T,D], w [B,T,G], table [B,G,2D]. In kernels b is a number,
t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import strided
from ..common.triton_tiles import dot_precision, token_block
from ..configurations import configured
from ..launch import launch
from . import triton_few_film
from .triton_few_grids import few_grids
from .triton_modulation import Film, merge_statistics, modulation, residual_tile, row_tile, tiles, weights_tile
from .triton_rows import Norm, normalised, store_rows, store_statistics
from .triton_weights import MOST_GRIDS_IN_REGISTERS


@triton.jit(do_not_specialize=["T", "G"])
def film_residual_kernel(
    y,  # [B,T,D]
    x,  # [B,T,D]
    film,
    norm,  # its statistics are written; None: r alone
    r_ptr,  # [B,T,D], contiguous
    normed_ptr,  # [B,T,D], contiguous; None where norm is
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
    """Each program takes a block of tokens of a row: r and its statistics, then LN(r) of r before it is rounded."""
    b, t = token_block(T, BLOCK_T)
    w = None
    if IN_REGISTERS:
        w = weights_tile(film.w, b, t, tl.arange(0, BLOCK_G), T, G)
    gate = tl.load(film.gate).to(tl.float32)
    mean = tl.zeros([BLOCK_T], tl.float32)
    m2 = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, beta = modulation(film, w, b, t, d, T, G, D, BLOCK_G, PRECISION)
        r = residual_tile(row_tile(y, b, t, d, t < T, D), x, gate, gamma, beta, b, t, d, T, D)
        store_rows(r_ptr, b, t, T, d, D, r)
        mean, m2 = merge_statistics(r, mean, m2, start, d, D)
    if norm is not None:
        rstd = 1 / tl.sqrt(m2 / D + eps)
        store_statistics(norm, b, t, T, mean, rstd)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            gamma, beta = modulation(film, w, b, t, d, T, G, D, BLOCK_G, PRECISION)
            r = residual_tile(row_tile(y, b, t, d, t < T, D), x, gate, gamma, beta, b, t, d, T, D)
            _, _, normed = normalised(r, mean, rstd, norm, d, D)
            store_rows(normed_ptr, b, t, T, d, D, normed)


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
    """Compute r in the dtype of x; with a norm LN(r) in the dtype of y, and mean and rstd of r, [2,B,T] float32."""
    (B, T, D), G = x.shape, w.shape[2]
    r = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    normed = statistics = norm = None
    if ln_weight is not None:
        normed = torch.empty(y.shape, dtype=y.dtype, device=y.device)
        statistics = torch.empty(2, B, T, dtype=torch.float32, device=x.device)
        norm = Norm(ln_weight, ln_bias, *statistics)
    film = Film(strided(w), strided(table), None, bias, gate)
    if few_grids(G, D):
        triton_few_film.film_residual(y, x, film, norm, r, normed, G, eps)
        return r, normed, statistics
    sizes = tiles(B, T, G, MOST_GRIDS_IN_REGISTERS, w, table)
    sizes = configured(film_residual_kernel, y, {"B": B, "T": T, "G": G, "D": D}, sizes, fixed=("BLOCK_G",))
    launch(
        film_residual_kernel,
        (B * triton.cdiv(T, sizes["BLOCK_T"]),),
        y=strided(y),
        x=strided(x),
        film=film,
        norm=norm,
        r_ptr=r,
        normed_ptr=normed,
        T=T,
        G=G,
        eps=eps,
        D=D,
        IN_REGISTERS=G <= MOST_GRIDS_IN_REGISTERS,
        PRECISION=dot_precision(film_residual_kernel, w, table),
        **sizes,
    )
    return r, normed, statistics
