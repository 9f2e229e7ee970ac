"""FiLM of normalised tokens by the grids that they see, in Triton (docs/mathematics.md, 2a).

A token's row is read twice by its program, the second time from the cache: once for the statistics of its LayerNorm,
once for what comes out.

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; x [B,T,D], q [B,T,H,DH], k [B,G,H,DH],
w [B,T,G], table [B,G,2D]. In kernels b is a number, t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import store, strided
from ..common.triton_tiles import block_of, dot_precision
from ..configurations import configured
from ..launch import launch
from . import triton_few_film
from .selection import Selection
from .triton_many_film import many_film
from .triton_modulation import (
    Film,
    merge_statistics,
    modulation,
    new_rows,
    row_tile,
    tiles,
)
from .triton_rows import Norm, normalised, store_statistics, tokens_and_grids
from .triton_selection import selection_in_registers
from .triton_weights import MOST_GRIDS_IN_REGISTERS, token_weights

# What a program asks of memory at once where nothing else takes its registers.
NUMBERS_OF_A_TILE = 4096


@triton.jit
def grounded_film_kernel(
    x,  # [B,T,D]
    q,  # [B,T,H,DH]
    k,  # [B,G,H,DH]
    film,  # its w is written
    norm,  # its statistics are written
    selection,
    x_f,  # [B,T,D], written
    eps,
    DH: tl.constexpr,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_LN: tl.constexpr,  # columns at a time for the statistics: the pass that waits for memory
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row: w, the statistics of x, then x_f a block of columns at a time."""
    T, G = selection.T, selection.G
    b, t, grid, token_kept, grid_kept = tokens_and_grids(selection, BLOCK_T, BLOCK_G)
    w = token_weights(q, k, selection, b, t, grid, token_kept, grid_kept, DH, BLOCK_DH, PRECISION)
    store(film.w, (b, t[:, None], grid[None, :]), w, (t < T)[:, None] & (grid < G)[None, :])

    mean = tl.zeros([BLOCK_T], tl.float32)
    m2 = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, D, BLOCK_LN):
        d = start + tl.arange(0, BLOCK_LN)
        mean, m2 = merge_statistics(row_tile(x, b, t, d, token_kept, D), mean, m2, start, d, D)
    rstd = 1 / tl.sqrt(m2 / D + eps)
    store_statistics(norm, b, t, T, mean, rstd)

    gate = tl.load(film.gate).to(tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        gamma, beta = modulation(film, w, b, t, d, T, G, D, BLOCK_G, PRECISION)
        _, _, normed = normalised(row_tile(x, b, t, d, token_kept, D), mean, rstd, norm, d, D)
        modulated = tl.where(token_kept[:, None], normed * (1 + gate * gamma) + gate * beta, 0.0)
        store(x_f, (b, t[:, None], d[None, :]), modulated, (t < T)[:, None] & (d < D)[None, :])


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
    channels_first: bool,
    selection: Selection,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute x_f in the dtype of x, w in the dtype of q, and mean and rstd of the rows of x, [2,B,T] float32.

    With `channels_first` x_f lies in memory as [B,D,T].
    """
    (B, T, D), G, D_h = x.shape, k.shape[1], k.shape[3]
    if G > MOST_GRIDS_IN_REGISTERS:
        return many_film(x, q, k, table, bias, gate, ln_weight, ln_bias, eps, channels_first, selection)
    x_f = new_rows(x, channels_first)
    statistics = torch.empty(2, B, T, dtype=torch.float32, device=x.device)
    w = torch.empty(B, T, G, dtype=q.dtype, device=x.device)
    film = Film(strided(w), strided(table), strided(selection.grid_mask), bias, gate)
    norm = Norm(ln_weight, ln_bias, *statistics)
    if triton_few_film.takes_grounded_film(x, q, k):
        triton_few_film.grounded_film(x, q, k, film, norm, selection, x_f, eps)
        return x_f, w, statistics
    sizes = tiles(B, T, G, MOST_GRIDS_IN_REGISTERS, x, table)
    sizes = configured(grounded_film_kernel, x, {"B": B, "T": T, "G": G, "D": D}, sizes, fixed=("BLOCK_G",))
    launch(
        grounded_film_kernel,
        (B * triton.cdiv(T, sizes["BLOCK_T"]),),
        x=strided(x),
        q=strided(q),
        k=strided(k),
        film=film,
        norm=norm,
        selection=selection_in_registers(selection, q, k),
        x_f=strided(x_f),
        eps=eps,
        DH=D_h,
        D=D,
        BLOCK_DH=block_of(D_h),
        BLOCK_LN=min(block_of(D), NUMBERS_OF_A_TILE // sizes["BLOCK_T"]),
        PRECISION=dot_precision(grounded_film_kernel, q, k, table),
        **sizes,
    )
    return x_f, w, statistics
