"""FiLM of normalised tokens by many grids, in Triton (docs/mathematics.md, 2a): weights first, then one product.

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; x [B,T,D], w [B,T,G], table [B,G,2D]. In
kernels b is a number, t, grid and d the indices of a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import store, strided
from ..common.triton_tiles import dot_precision, token_block
from ..configurations import configured
from ..launch import launch
from .selection import Selection
from .triton_many_weights import RowStatistics, dtype_of_weights, many_weights, weights_of_grids
from .triton_modulation import Film, new_rows, row_tile
from .triton_rows import Norm, Weights, kept, load_statistics, normalised, product, sizes_of_product
from .triton_selection import halves


@triton.jit
def _modulated(x, film, norm, gamma, beta, b, t, d, mean, rstd, token_kept, D: tl.constexpr):
    """x_f of the columns d, from w table of these."""
    gamma += tl.load(film.bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    beta += tl.load(film.bias + D + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    gate = tl.load(film.gate).to(tl.float32)
    _, _, normed = normalised(row_tile(x, b, t, d, token_kept, D), mean, rstd, norm, d, D)
    return tl.where(token_kept[:, None], normed * (1 + gate * gamma) + gate * beta, 0.0)


@triton.jit(do_not_specialize=["T", "G"])
def many_film_kernel(
    x,  # [B,T,D]
    w,  # Weights
    film,  # its table [B,1,G,2D]
    norm,
    text_mask,  # [B,T] or None
    x_f,  # [B,T,D], written
    T,
    G,
    D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes a block of tokens of a row and one of columns; it walks through the grids."""
    b, t = token_block(T, BLOCK_T)
    first = tl.program_id(1) * BLOCK_D
    both = tl.arange(0, 2 * BLOCK_D)
    column = tl.max_contiguous(first + both % BLOCK_D + both // BLOCK_D * D, BLOCK_D)
    exists = first + both % BLOCK_D < D
    acc = product(w, film.table, film.grid_mask, b, 0, t, column, exists, T, G, BLOCK_G, PRECISION)
    token_kept = kept(text_mask, b, t, T)
    mean, rstd = load_statistics(norm, b, t, T, t < T)
    gamma, beta = halves(acc)
    gammas, betas = halves(gamma), halves(beta)
    for half in tl.static_range(2):  # one after the other, for want of registers
        d = first + half * (BLOCK_D // 2) + tl.arange(0, BLOCK_D // 2)
        modulated = _modulated(x, film, norm, gammas[half], betas[half], b, t, d, mean, rstd, token_kept, D)
        store(x_f, (b, t[:, None], d[None, :]), modulated, (t < T)[:, None] & (d < D)[None, :])


def many_film(
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
    """Compute x_f in the dtype of x, w in the dtype of q, and mean and rstd of the rows of x, [2,B,T] float32."""
    (B, T, D), G = x.shape, k.shape[1]
    x_f = new_rows(x, channels_first)
    statistics = torch.empty(2, B, T, dtype=torch.float32, device=x.device)
    rows = RowStatistics(strided(x), statistics[0], statistics[1], eps)
    w, rest = many_weights(q, k, selection, dtype_of_weights(q, table), rows)
    sizes = sizes_of_product(B, T, 2 * D, w, table)
    sizes["BLOCK_D"] //= 2  # of gamma and as many of beta
    sizes = configured(many_film_kernel, table, {"B": B, "T": T, "G": G, "D": D}, sizes)
    launch(
        many_film_kernel,
        (B * triton.cdiv(T, sizes["BLOCK_T"]), triton.cdiv(D, sizes["BLOCK_D"])),
        x=strided(x),
        w=Weights.of(w, rest),
        film=Film(None, strided(table[:, None]), strided(selection.grid_mask), bias, gate),
        norm=Norm(ln_weight, ln_bias, *statistics),
        text_mask=strided(selection.text_mask),
        x_f=strided(x_f),
        T=T,
        G=G,
        D=D,
        PRECISION=dot_precision(many_film_kernel, table),
        **sizes,
    )
    return x_f, weights_of_grids(w, G, q.dtype), statistics
