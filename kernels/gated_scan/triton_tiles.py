"""Linear recurrence with real gates in Triton: what the kernels share.

A program is one warp, and each of its threads takes all steps of a tile for its own channels: a scan is then a product
and a sum a step. Where rows and channels are too few for a GPU, time is divided into pieces. What a piece does to the
state before it, h -> product h + sum, is found for all pieces at once, and then each begins where those before it end.

Shapes in these files:
    B, T, D     rows, steps and channels
    texts       states: B, or the number of sequences where cu_seqlens packs them into one row
    pieces      of time, of each text as many; the last ones are shorter or empty
    kept        states that the forward pass keeps, one before each KEPT steps of a text
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import strided
from ..common.triton_scans import find_text, is_step, step_of
from ..common.triton_tiles import contiguous
from ..launch import launch
from .shapes import KEPT, block_of_channels, pieces_of


class Totals(NamedTuple):
    """Effect of each piece on a state."""

    products_ptr: Any
    """[texts,pieces,D] float32, contiguous, and so the sums."""
    sums_ptr: Any


@triton.jit
def channels_of_program(D, BLOCK_D: tl.constexpr):
    """The channels d [BLOCK_D] (int64) of a program, which of them exist, and the number of the program for them."""
    blocks = tl.cdiv(D, BLOCK_D)
    d = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_D + tl.arange(0, BLOCK_D)
    return d, d < D, (tl.program_id(0) // blocks).to(tl.int64)


@triton.jit
def find_piece(cu_seqlens_ptr, text, piece, pieces, T, KEPT: tl.constexpr):
    """Find a piece of a text: the row, begin and end, and the number of the first kept state, all int64."""
    row, first, end, number = find_text(cu_seqlens_ptr, text, T, KEPT)
    tiles = tl.cdiv(end - first, KEPT)
    of_piece = tl.cdiv(tiles, pieces)
    begin = tl.minimum(first + piece * of_piece * KEPT, end)
    return row, begin, tl.minimum(begin + of_piece * KEPT, end), number + piece * of_piece


@triton.jit
def load_tile(x, row, t, end, d, d_inside, other):
    """Load [BLOCK_T, BLOCK_D] of x [B,T,D] in float32; `other` beyond the end."""
    tile = x.ptr + (row * x.strides[0] + t * x.strides[1])[:, None] + (d * x.strides[2])[None, :]
    return tl.load(tile, mask=(t < end)[:, None] & d_inside[None, :], other=other).to(tl.float32)


@triton.jit
def carry(totals, h, text, first, last, step, pieces, D, d, d_inside):
    """The state h [BLOCK_D] after the pieces from `first` to `last`, which does not count, one `step` after the other.

    A product that is infinite makes nothing of 0, as its factors would.
    """
    for piece in range(first, last, step):
        of = (text * pieces + piece) * D + d
        moved = tl.load(totals.products_ptr + of, mask=d_inside, other=0.0) * h
        h = tl.where(h == 0, 0.0, moved) + tl.load(totals.sums_ptr + of, mask=d_inside, other=0.0)
    return h


@triton.jit
def _compose(decay, value, next_decay, next_value):
    """Compose h -> decay h + value and h -> next_decay h + next_value."""
    return decay * next_decay, next_decay * value + next_value


@triton.jit(do_not_specialize=["pieces", "T"])
def gated_scan_totals_kernel(
    a,  # Strided [B,T,D]
    x,  # Strided [B,T,D]: b, in REVERSE dh
    cu_seqlens_ptr,  # [texts + 1], contiguous, or None: a sequence is a row
    totals,  # Totals: all but that of the last piece, in REVERSE all but that of the first
    pieces,
    T,
    D,
    KEPT: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Each program takes BLOCK_D channels of a piece, and finds its h -> product h + sum.

    In REVERSE that of e, with e_t = a_t e_{t+1} + a_t dh_t, from the last step to the first.
    """
    d, d_inside, number = channels_of_program(D, BLOCK_D)
    text, piece = number // (pieces - 1), number % (pieces - 1)
    if REVERSE:
        piece += 1
    row, first, end, _ = find_piece(cu_seqlens_ptr, text, piece, pieces, T, KEPT)
    product, total = tl.full([BLOCK_D], 1.0, tl.float32), tl.zeros([BLOCK_D], tl.float32)
    tiles = tl.cdiv(end - first, KEPT)
    for done in range(tiles):
        if REVERSE:
            t = first + (tiles - 1 - done) * KEPT + (KEPT - 1 - tl.arange(0, KEPT))
        else:
            t = first + done * KEPT + tl.arange(0, KEPT)
        decay, value = load_tile(a, row, t, end, d, d_inside, 1.0), load_tile(x, row, t, end, d, d_inside, 0.0)
        if REVERSE:
            value *= decay
        is_first = is_step(decay, 0)
        value = tl.where(is_first, decay * total[None, :] + value, value)
        decay = tl.where(is_first, decay * product[None, :], decay)
        decay, value = tl.associative_scan((decay, value), 0, _compose)
        product, total = step_of(decay, KEPT - 1), step_of(value, KEPT - 1)
    of = (text * pieces + piece) * D + d
    tl.store(totals.products_ptr + of, product, mask=d_inside)
    tl.store(totals.sums_ptr + of, total, mask=d_inside)


class Plan:
    """Division of a scan among programs, and the arguments that all its kernels take."""

    def __init__(self, a: Tensor, cu_seqlens: Tensor | None, enough: int):
        B, T, D = a.shape
        self.texts = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        block = block_of_channels(D)
        self.blocks = triton.cdiv(D, block)
        self.pieces = pieces_of(self.texts * self.blocks, T, enough)
        self.arguments = {"a": strided(a), "cu_seqlens_ptr": contiguous(cu_seqlens), "pieces": self.pieces, "T": T}
        self.arguments |= {"D": D, "KEPT": KEPT, "BLOCK_D": block, "num_warps": 1, "num_stages": 1}

    @property
    def grid(self) -> tuple[int]:
        return (self.texts * self.pieces * self.blocks,)

    def totals(self, x: Tensor, reverse: bool) -> Totals | None:
        """Compute the effect of each piece on a state; None where there is one piece."""
        if self.pieces == 1:
            return None
        size = self.texts, self.pieces, x.shape[2]
        totals = Totals(*(torch.empty(size, dtype=torch.float32, device=x.device) for _ in range(2)))
        grid = (self.texts * (self.pieces - 1) * self.blocks,)
        launch(gated_scan_totals_kernel, grid, x=strided(x), totals=totals, REVERSE=reverse, **self.arguments)
        return totals
