"""Tokens that see few grids, in Triton: a multiplication for each grid (docs/mathematics.md, 2 and 2a).

A product over so few grids would leave most of a matrix instruction empty, and a matrix instruction wants 16 tokens.
So w table is a sum of G multiples of the table's rows, on the pipe that does the rest: a program takes few tokens, and
each of its threads some columns of all of them, whose part of the table it reads once.

Shapes: B rows of T tokens and G grids, H heads of DH numbers, D columns; q [B,T,H,DH], k [B,G,H,DH], w [B,T,G]. In
kernels b is a number, t, h and d are the indices of a block. What there is for each grid is a tuple of FEW values, of
which those from G on are zero.
"""

import math
from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, store
from ..common.triton_tiles import HALF, PROGRAMS, block_of, random_bits
from ..configurations import configured
from .selection import Selection
from .triton_rows import kept
from .triton_selection import INFINITY, LARGEST, KernelSelection, kernel_selection

FEW_GRIDS = 8
_BLOCK_G = tl.constexpr(FEW_GRIDS)
# As many as the model has, a global and four local ones, spare the work of three more.
USUAL_GRIDS = 5
# With more columns a program's registers do not hold whole rows of its tokens.
MOST_COLUMNS = 2048
# Numbers of a query, all heads, that they hold beside the keys of each grid.
MOST_OF_A_QUERY = 256


def few_grids(G: int, D: int, query: Sequence[int] = ()) -> bool:
    """Tell whether the kernels for few grids take a table of G rows and D columns of tokens, and a query [H,DH]."""
    numbers = math.prod(map(triton.next_power_of_2, query))
    return G <= FEW_GRIDS and D <= MOST_COLUMNS and numbers <= MOST_OF_A_QUERY


def few_grids_tiles(kernel: Any, G: int, *rows: Tensor) -> dict[str, int]:
    """Blocks and warps of a kernel that holds whole rows of tokens, those of each of `rows` [B,T,D]."""
    B, T, D = rows[0].shape
    is_light = len(rows) == 1 and rows[0].dtype in HALF and G <= USUAL_GRIDS
    # With fewer programs than fill a GPU, more of them are worth more than a table that is read less often.
    tokens = 8 if is_light and B * triton.cdiv(T, 8) >= PROGRAMS else 4
    tiles = {
        "BLOCK_T": tokens,
        "BLOCK_D": block_of(D),
        "FEW": USUAL_GRIDS if G <= USUAL_GRIDS else FEW_GRIDS,
        "num_warps": 4 if D <= 1024 else 8,
    }
    return configured(kernel, rows[0], {"B": B, "T": T, "G": G, "D": D}, tiles, fixed=("BLOCK_D", "FEW"))


def few_selection(selection: Selection, q: Tensor, k: Tensor) -> KernelSelection:
    """Prepare `selection` for these kernels: they select in one way, whatever K is, so that it is one compilation."""
    K = selection.top_k or FEW_GRIDS
    return kernel_selection(selection, q, k)._replace(K=K, SELECT=LARGEST)


def heads_tiles(k: Tensor) -> dict[str, int]:
    """Blocks of the heads of k [B,G,H,DH], and what they hold."""
    H, DH = k.shape[2:]
    return {"DH": DH, "BLOCK_H": triton.next_power_of_2(H), "BLOCK_DH": triton.next_power_of_2(DH)}


@triton.jit
def grids_kept(mask, b, G, FEW: tl.constexpr):
    """Tell of each grid whether it exists and is True in `mask` [B,G], if given: [1], so that it broadcasts."""
    found = ()
    for grid in tl.static_range(FEW):
        found += (kept(mask, b, tl.full([1], grid, tl.int32), G),)
    return found


@triton.jit
def heads_of_tokens(T, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr):
    """The tokens t (int64) and heads h [BLOCK_T BLOCK_H] of a program's block of tokens: all heads of each."""
    row = tl.arange(0, BLOCK_T * BLOCK_H)
    first = (tl.program_id(0) % tl.cdiv(T, BLOCK_T)).to(tl.int64) * BLOCK_T
    return first + row // BLOCK_H, row % BLOCK_H


@triton.jit
def queries_and_keys(q, k, selection, b, t, h, grid_kept, DH: tl.constexpr, BLOCK_DH: tl.constexpr):
    """The query of each head h of a token t, and its keys of each grid, [rows, BLOCK_DH]; zero under a mask."""
    d = tl.arange(0, BLOCK_DH)
    inside = (h < selection.H)[:, None] & (d < DH)[None, :]
    token_kept = kept(selection.text_mask, b, t, selection.T)
    queries = load(q, (b, t[:, None], h[:, None], d[None, :]), token_kept[:, None] & inside)
    keys = ()
    for grid in tl.static_range(len(grid_kept)):
        keys += (load(k, (b, grid, h[:, None], d[None, :]), inside & grid_kept[grid][:, None]),)
    return queries, keys


@triton.jit
def _chosen(scores, selection):
    """Tell of each grid in which rows it is among the K largest; of equals the lower index comes first."""
    found = ()
    for grid in tl.static_range(len(scores)):
        before = tl.zeros(scores[grid].shape, tl.int32)
        for other in tl.static_range(len(scores)):
            if other < grid:
                before += (scores[other] >= scores[grid]).to(tl.int32)
            elif other > grid:
                before += (scores[other] > scores[grid]).to(tl.int32)
        found += ((scores[grid] > -INFINITY) & (before < selection.K),)
    return found


@triton.jit
def _head_weights(queries, keys, selection, b, t, h, grid_kept):
    """Each head's weights for each grid, [rows] float32: softmax, selection and dropout.

    A choice stands between each product and the sum that it goes into: fused with one side of an exchange between
    threads, it would give the two sides sums that differ by a rounding, and warps that write one of them each.
    """
    row_kept = kept(selection.text_mask, b, t, selection.T) & (h < selection.H)
    scores = ()
    for grid in tl.static_range(len(keys)):
        products = tl.where(row_kept[:, None], queries.to(tl.float32) * keys[grid].to(tl.float32), 0.0)
        scores += (tl.where(row_kept & grid_kept[grid], tl.sum(products, 1) * selection.scale, -INFINITY),)
    chosen = _chosen(scores, selection)
    highest = tl.full(t.shape, -INFINITY, tl.float32)
    for grid in tl.static_range(len(keys)):
        highest = tl.maximum(highest, scores[grid])
    highest = tl.where(highest == -INFINITY, 0.0, highest)
    total = tl.zeros(t.shape, tl.float32)
    weights = ()
    for grid in tl.static_range(len(keys)):
        weight = tl.exp(scores[grid] - highest)
        weights += (tl.where(chosen[grid], weight, 0.0),)
        total += weights[grid] if selection.RENORMALIZE else weight
    factor = 1 / tl.where(total == 0, 1.0, total)
    found = ()
    for grid in tl.static_range(len(keys)):
        weight = tl.where(chosen[grid], weights[grid] * factor, 0.0)
        if selection.seed is not None:
            index = ((b * selection.H + h) * selection.T + t) * selection.G + grid
            stays = random_bits(tl.load(selection.seed), index) >= selection.drop_threshold
            weight = tl.where(stays, weight, 0.0)
        found += (weight,)
    return found


@triton.jit
def few_weights(queries, keys, selection, b, t, h, grid_kept, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr):
    """Compute w of each grid, [BLOCK_T] float32: the mean over heads."""
    of_heads = _head_weights(queries, keys, selection, b, t, h, grid_kept)
    w = ()
    for grid in tl.static_range(len(keys)):
        w += (tl.sum(tl.reshape(of_heads[grid], [BLOCK_T, BLOCK_H]), 1) / selection.shares,)
    return w


@triton.jit
def store_weights(ptr, w, b, t, T, G):
    """Write w [B,T,G] of the tokens t."""
    grid = tl.arange(0, _BLOCK_G)
    tile = tl.zeros([t.shape[0], _BLOCK_G], tl.float32)
    for i in tl.static_range(len(w)):
        tile = tl.where((grid == i)[None, :], w[i][:, None], tile)
    store(ptr, (b, t[:, None], grid[None, :]), tile, (t < T)[:, None] & (grid < G)[None, :])


@triton.jit
def table_rows(table, b, d, grid_kept, END: tl.constexpr):
    """The columns d [1, BLOCK_D] of each grid's row of table [B,G,END]; of grids that are not kept zero."""
    found = ()
    for grid in tl.static_range(len(grid_kept)):
        found += (load(table, (b, grid, d), (d < END) & grid_kept[grid][:, None]),)
    return found


@triton.jit
def add_rows(total, w, rows):
    """total [1, BLOCK_D] + the sum over grids of w row, [BLOCK_T, BLOCK_D] float32."""
    for grid in tl.static_range(len(rows)):
        total += w[grid][:, None] * rows[grid].to(tl.float32)
    return total
