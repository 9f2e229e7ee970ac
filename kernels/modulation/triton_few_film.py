"""Both FiLMs of tokens that see few grids, forward, in Triton: a row stays in registers (docs/mathematics.md, 2a).

The backward passes are those of any number of grids.

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; x, y, r [B,T,D], q [B,T,H,DH], k [B,G,H,DH],
w [B,T,G], table [B,G,2D]. In kernels b is a number, t and d are the indices of a block.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, store, strided
from ..common.triton_tiles import HALF, token_block
from ..launch import launch
from .selection import Selection
from .triton_few_grids import (
    USUAL_GRIDS,
    add_rows,
    few_grids,
    few_grids_tiles,
    few_selection,
    few_weights,
    grids_kept,
    heads_of_tokens,
    heads_tiles,
    queries_and_keys,
    store_weights,
    table_rows,
)
from .triton_modulation import Film, row_tile
from .triton_rows import Norm, kept, store_rows, store_statistics

# Predicted for an H100, D 1024, G 8: so many tokens take as long by products of tiles, which need more tokens for it.
MOST_TOKENS_OF_MORE_GRIDS = 8192


@triton.jit
def _film_rows(film, b, d, grid_kept, D: tl.constexpr):
    """The columns d [1, BLOCK_D] of what makes gamma and beta: the table's rows for each, and the bias for each."""
    gammas = table_rows(film.table, b, d, grid_kept, D)
    betas = table_rows(film.table, b, D + d, grid_kept, 2 * D)
    bias_gamma = tl.load(film.bias + d, mask=d < D, other=0.0)
    bias_beta = tl.load(film.bias + D + d, mask=d < D, other=0.0)
    return gammas, betas, bias_gamma, bias_beta


@triton.jit
def _modulated(u, rows, w, gate):
    """u (1 + gate gamma) + gate beta [BLOCK_T, BLOCK_D], of rows as `_film_rows` has them."""
    gammas, betas, bias_gamma, bias_beta = rows
    gated = ()
    for grid in tl.static_range(len(w)):
        gated += (w[grid] * gate,)
    scaled = u * add_rows(1 + gate * bias_gamma.to(tl.float32), gated, gammas)
    return add_rows(scaled + gate * bias_beta.to(tl.float32), gated, betas)


@triton.jit
def _normalise(rows, norm, b, t, T, d, eps, D: tl.constexpr):
    """LayerNorm of whole rows [BLOCK_T, BLOCK_D], zero from column D on; its statistics are written."""
    weight = tl.load(norm.weight + d, mask=d < D, other=0.0)
    bias = tl.load(norm.bias + d, mask=d < D, other=0.0)
    mean = tl.sum(rows, 1) / D
    deviation = tl.where(d < D, rows - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(deviation * deviation, 1) / D + eps)
    store_statistics(norm, b, t, T, mean, rstd)
    return deviation * rstd[:, None] * weight.to(tl.float32) + bias.to(tl.float32)


@triton.jit
def few_grids_film_kernel(
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
    BLOCK_H: tl.constexpr,
    BLOCK_DH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FEW: tl.constexpr,
):
    """Each program takes a block of tokens of a row, from x to x_f in registers."""
    T, G = selection.T, selection.G
    b, t = token_block(T, BLOCK_T)
    head_t, h = heads_of_tokens(T, BLOCK_T, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    token_kept = kept(selection.text_mask, b, t, T)
    grid_kept = grids_kept(selection.grid_mask, b, G, FEW)
    queries, keys = queries_and_keys(q, k, selection, b, head_t, h, grid_kept, DH, BLOCK_DH)
    x_tile = row_tile(x, b, t, d, token_kept, D)
    w = few_weights(queries, keys, selection, b, head_t, h, grid_kept, BLOCK_T, BLOCK_H)
    store_weights(film.w, w, b, t, T, G)
    normed = _normalise(x_tile, norm, b, t, T, d[None, :], eps, D)
    rows = _film_rows(film, b, d[None, :], grid_kept, D)
    modulated = _modulated(normed, rows, w, tl.load(film.gate).to(tl.float32))
    if selection.text_mask is not None:
        modulated = tl.where(token_kept[:, None], modulated, 0.0)
    store(x_f, (b, t[:, None], d[None, :]), modulated, (t < T)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["T", "G"])
def few_grids_residual_kernel(
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
    BLOCK_D: tl.constexpr,
    FEW: tl.constexpr,
):
    """Each program takes a block of tokens of a row, from y to LN(r) in registers."""
    b, t = token_block(T, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    grid_kept = grids_kept(None, b, G, FEW)
    w = ()
    for grid in tl.static_range(FEW):
        w += (load(film.w, (b, t, grid), (t < T) & grid_kept[grid]).to(tl.float32),)
    y_tile = row_tile(y, b, t, d, t < T, D)
    x_tile = row_tile(x, b, t, d, t < T, D)
    rows = _film_rows(film, b, d[None, :], grid_kept, D)
    r = x_tile + _modulated(y_tile, rows, w, tl.load(film.gate).to(tl.float32))
    store_rows(r_ptr, b, t, T, d, D, r)
    if norm is not None:
        normed = _normalise(r, norm, b, t, T, d[None, :], eps, D)
        store_rows(normed_ptr, b, t, T, d, D, normed)


def takes_grounded_film(x: Tensor, q: Tensor, k: Tensor) -> bool:
    """Tell whether `grounded_film` here is quicker than by products: with 6 to 8 grids only for few tokens."""
    (B, T, D), G = x.shape, k.shape[1]
    is_light = G <= USUAL_GRIDS or x.dtype not in HALF or B * T <= MOST_TOKENS_OF_MORE_GRIDS
    return is_light and few_grids(G, D, q.shape[2:])


def grounded_film(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    film: Film,
    norm: Norm,
    selection: Selection,
    x_f: Tensor,
    eps: float,
) -> None:
    """Write x_f, the weights of `film` and the statistics of `norm`."""
    (B, T, D), G = x.shape, k.shape[1]
    sizes = few_grids_tiles(few_grids_film_kernel, G, x)
    launch(
        few_grids_film_kernel,
        (B * triton.cdiv(T, sizes["BLOCK_T"]),),
        x=strided(x),
        q=strided(q),
        k=strided(k),
        film=film,
        norm=norm,
        selection=few_selection(selection, q, k),
        x_f=strided(x_f),
        eps=eps,
        D=D,
        **heads_tiles(k),
        **sizes,
    )


def film_residual(
    y: Tensor, x: Tensor, film: Film, norm: Norm | None, r: Tensor, normed: Tensor | None, G: int, eps: float
) -> None:
    """Write r and, with a norm, LN(r) and the statistics of `norm`."""
    B, T, D = x.shape
    sizes = few_grids_tiles(few_grids_residual_kernel, G, y, x)
    launch(
        few_grids_residual_kernel,
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
        **sizes,
    )
