"""Selection of the grids that a head of a token keeps, and the softmax over them (docs/mathematics.md, 2b).

Shapes: B rows of T tokens, G grids and H heads; scores of a head [BLOCK_T, BLOCK_G]; masks [B,T] and [B,G]. In kernels
b and h are numbers, t and grid the indices of a block.
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..common.random import DRAW_BITS
from ..common.strided import Strided, strided
from ..common.triton_tiles import random_bits
from .selection import Selection

# How the K largest of a row are found: not at all; by K passes; by K or by G - K passes, whichever are fewer, which the
# kernel finds out; by bisection.
ALL, LARGEST, PASSES, BISECTION = (tl.constexpr(value) for value in range(4))
MOST_PASSES = 24
STEPS_OF_INDICES = tl.constexpr(16)  # of a bisection of as many as 2^15 grids
INFINITY = tl.constexpr(float("inf"))
LOWEST = tl.constexpr(-3.4028234663852886e38)


class KernelSelection(NamedTuple):
    """A `Selection` for queries and keys of a size, as a kernel takes it."""

    grid_mask: Strided | None  # [B,G]
    text_mask: Strided | None  # [B,T]
    seed: Any  # one int64, or None: no dropout
    T: int
    G: int
    K: int
    scale: float  # of the scores
    drop_threshold: int  # an element is dropped when its 24 bits are below
    shares: float  # what the sum over heads is divided by: H (1 - p)
    H: tl.constexpr
    RENORMALIZE: tl.constexpr
    SELECT: tl.constexpr

    do_not_specialize = ("T", "G", "K", "drop_threshold")
    do_not_specialize_on_alignment = ("grid_mask", "text_mask")


def kernel_selection(selection: Selection, q: Tensor, k: Tensor) -> KernelSelection:
    """Prepare `selection` for the kernels, with queries q [B,T,H,D_h] and keys k [B,G,H,D_h]."""
    (G, H, D_h), top_k = k.shape[1:], selection.top_k or 0
    return KernelSelection(
        grid_mask=strided(selection.grid_mask),
        text_mask=strided(selection.text_mask),
        seed=selection.seed if selection.dropout_p > 0 else None,
        T=q.shape[1],
        G=G,
        K=top_k,
        scale=1 / math.sqrt(D_h),
        drop_threshold=round(selection.dropout_p * 2**DRAW_BITS),
        shares=H * (1 - selection.dropout_p),
        H=tl.constexpr(H),
        RENORMALIZE=tl.constexpr(selection.renormalize),
        SELECT=tl.constexpr(way_to_select(G, top_k)),
    )


def selection_in_registers(selection: Selection, q: Tensor, k: Tensor) -> KernelSelection:
    """Prepare `selection` for the kernels that call `softmax`: any number of passes, none too, is one compilation."""
    prepared = kernel_selection(selection, q, k)
    if prepared.SELECT.value == BISECTION.value:
        return prepared
    return prepared._replace(K=selection.top_k or prepared.G, SELECT=PASSES)


def way_to_select(G: int, top_k: int) -> int:
    """Choose how to find the `top_k` largest of G: by passes while they are few, beyond `MOST_PASSES` by bisection."""
    if not 0 < top_k < G:
        return ALL.value
    if min(top_k, G - top_k) > MOST_PASSES:
        return BISECTION.value
    return LARGEST.value if top_k <= G - top_k else PASSES.value


@triton.jit
def _among(scores, grid, value, cut):
    """The scores above `value`, and of those equal to it the ones of grids before `cut`."""
    return (scores > value[:, None]) | ((scores == value[:, None]) & (grid[None, :] < cut[:, None]))


@triton.jit
def _kth_largest(scores, grid, G, K, SELECT: tl.constexpr):
    """(value, cut) [BLOCK_T] of which `_among` makes exactly the K largest; of equals the lower index comes first.

    Columns from G on hold -inf and are never among them before a column of a grid is.
    """
    BLOCK_T: tl.constexpr = scores.shape[0]
    BLOCK_G: tl.constexpr = scores.shape[1]
    if SELECT != BISECTION:
        if K <= G - K:  # the K largest one after the other
            value = tl.full([BLOCK_T], INFINITY, tl.float32)
            cut = tl.zeros([BLOCK_T], tl.int32)
            for _ in range(K):
                taken = _among(scores, grid, value, cut)
                value = tl.max(tl.where(taken, -INFINITY, scores), 1)
                candidates = (scores == value[:, None]) & ~taken
                cut = tl.min(tl.where(candidates, grid[None, :], BLOCK_G), 1) + 1
        else:  # the smallest are left out one after the other
            value = tl.full([BLOCK_T], -INFINITY, tl.float32)
            cut = tl.zeros([BLOCK_T], tl.int32) + G
            for _ in range(G - K):
                left = _among(scores, grid, value, cut)
                value = tl.min(tl.where(left, scores, INFINITY), 1)
                candidates = (scores == value[:, None]) & left
                cut = tl.max(tl.where(candidates, grid[None, :], -1), 1)
    else:
        # An unsigned integer in the order of the scores; 0, which no score has, where there is no grid.
        bits = (scores + 0.0).to(tl.int32, bitcast=True)
        key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
        key = tl.where(grid[None, :] < G, key, 0)
        kth = tl.zeros([BLOCK_T], tl.uint32)
        bit = tl.full([BLOCK_T], 0x80000000, tl.uint32)
        for _ in range(32):
            enough = tl.sum((key >= (kth | bit)[:, None]).to(tl.int32), 1) >= K
            kth = tl.where(enough, kth | bit, kth)
            bit = bit >> 1
        equals = K - tl.sum((key > kth[:, None]).to(tl.int32), 1)
        cut = tl.zeros([BLOCK_T], tl.int32)
        step = tl.full([BLOCK_T], BLOCK_G, tl.int32)
        for _ in range(STEPS_OF_INDICES):
            few = tl.sum(((key == kth[:, None]) & (grid[None, :] < (cut + step)[:, None])).to(tl.int32), 1) <= equals
            cut = tl.where(few, cut + step, cut)
            step = step >> 1
        bits = (kth ^ 0x80000000).to(tl.int32, bitcast=True)
        value = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return value, cut


@triton.jit
def halves(tile):
    """The left and the right half of the columns: in registers, where a thread has both."""
    ROWS: tl.constexpr = tile.shape[0]
    COLUMNS: tl.constexpr = tile.shape[1]
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


@triton.jit
def _ordered(a, b):
    return tl.maximum(a, b), tl.minimum(a, b)


@triton.jit
def _largest_of_many(scores, grid, token_kept, K):
    """(left, value, highest): the scores of which those from `value` on are exactly the K largest, and the highest.

    Each column of the quarters of a tile is sorted; then the next largest is in the first quarter, and is taken away by
    moving its column up. Of equals that are too many the later ones are -inf in `left`.
    """
    BLOCK_T: tl.constexpr = scores.shape[0]
    BLOCK_G: tl.constexpr = scores.shape[1]
    one, other = halves(scores)
    a, b = halves(one)
    c, d = halves(other)
    a, b = _ordered(a, b)
    c, d = _ordered(c, d)
    a, c = _ordered(a, c)
    b, d = _ordered(b, d)
    b, c = _ordered(b, c)
    highest = tl.max(a, 1)
    following, value = highest, highest
    wanted = tl.full([BLOCK_T], 0, tl.int32) + K
    places = wanted  # of those that are equal to `value`
    for _ in range(1, K):
        taken = a == following[:, None]
        wanted -= tl.sum(tl.where(taken, 1.0, 0.0), 1).to(tl.int32)
        a = tl.where(taken, b, a)
        b = tl.where(taken, c, b)
        c = tl.where(taken, d, c)
        d = tl.where(taken, -INFINITY, d)
        following = tl.max(a, 1)
        places = tl.where((wanted > 0) & (following < value), wanted, places)
        value = tl.where(wanted > 0, following, value)

    reached = tl.sum(tl.where(scores >= value[:, None], 1.0, 0.0), 1)
    tied = token_kept & (reached > K) & (value > -INFINITY)
    left = scores
    for i in range(tl.max(tl.where(tied, places, 0), 0)):
        first = tl.min(tl.where(left == value[:, None], grid[None, :], BLOCK_G), 1)
        first = tl.where(i < places, first, -1)
        left = tl.where(grid[None, :] == first[:, None], INFINITY, left)
    return left, tl.where(tied, _next_float(value), value), highest


@triton.jit
def _next_float(value):
    """The least float32 above."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits - 1, bits + 1).to(tl.float32, bitcast=True)


@triton.jit
def softmax(products, selection, b, h, t, grid, token_kept, grid_kept):
    """Compute the softmax p [BLOCK_T, BLOCK_G] of a head's products q.k, and which entries of p count.

    A row of -inf alone is zero. What lies under a mask is not seen, were it NaN.
    """
    visible = token_kept[:, None] & grid_kept[None, :]
    scores = tl.where(visible, products * selection.scale, -INFINITY)
    chosen = visible & (scores > -INFINITY)
    value, cut = _kth_largest(scores, grid, selection.G, selection.K, selection.SELECT)
    chosen &= _among(scores, grid, value, cut)
    if selection.RENORMALIZE:
        scores = tl.where(chosen, scores, -INFINITY)
    highest = tl.max(scores, 1)
    p = tl.exp(scores - tl.where(highest == -INFINITY, 0.0, highest)[:, None])
    total = tl.sum(p, 1)
    p /= tl.where(total == 0, 1.0, total)[:, None]
    chosen = _drop(chosen, selection, b, h, t, grid)
    return p, chosen


@triton.jit
def _drop(chosen, selection, b, h, t, grid):
    """Those that dropout leaves of the chosen ones."""
    if selection.seed is not None:
        index = (((b * selection.H + h) * selection.T + t) * selection.G)[:, None] + grid[None, :]
        chosen &= random_bits(tl.load(selection.seed), index) >= selection.drop_threshold
    return chosen


@triton.jit
def softmax_of_many(products, selection, b, h, t, grid, token_kept, grid_kept):
    """Compute what `softmax` does with fewer instructions for each grid: p of tokens that are not kept is 0."""
    scores = products * selection.scale + tl.where(grid_kept, 0.0, -INFINITY)[None, :]
    if selection.SELECT == LARGEST:
        left, value, highest = _largest_of_many(scores, grid, token_kept, selection.K)
        chosen = left >= tl.maximum(value, LOWEST)[:, None]
    else:
        chosen = scores > -INFINITY
        if selection.SELECT != ALL:
            value, cut = _kth_largest(scores, grid, selection.G, selection.K, selection.SELECT)
            chosen &= _among(scores, grid, value, cut)
        highest = tl.max(scores, 1)
    if selection.RENORMALIZE:
        scores = tl.where(chosen, scores, -INFINITY)
    p = tl.exp(scores - tl.where(highest == -INFINITY, 0.0, highest)[:, None])
    total = tl.sum(p, 1)
    p *= tl.where(token_kept, 1 / tl.where(total == 0, 1.0, total), 0.0)[:, None]
    return p, _drop(chosen, selection, b, h, t, grid)
