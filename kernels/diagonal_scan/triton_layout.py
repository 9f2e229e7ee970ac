"""Diagonal recurrence with complex modes in Triton: inputs whose times do not lie beside each other in memory.

A layer hands over u.mT of tokens u [B,L,D]. A program of the scan reads the times of one channel, each then from a
sector of its own: 32 B D L bytes of the L2 cache. A transposing copy moves 2 B D L numbers through memory, and is a
launch more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..launch import launch

# Steps, of all rows together, from which on the copy is ahead. Counted for 1024 channels of 16-bit numbers on an H100
# (`bench/predict/chips.py`): 2 us and 1.3 ns a step for the copy, 3.2 ns a step more without it.
STEPS_WORTH_A_COPY = 1024
_BLOCK = 64


@triton.jit(do_not_specialize=["blocks_of_rows"])
def diagonal_scan_copy_kernel(x, y_ptr, D, L, blocks_of_rows, BLOCK: tl.constexpr):
    """Each program copies BLOCK channels and BLOCK steps of a row of x, Strided [B,D,L], to y [B,D,L], contiguous."""
    blocks = tl.cdiv(L, BLOCK)
    number = tl.program_id(0) // blocks
    row = (number // blocks_of_rows).to(tl.int64)
    d = (number % blocks_of_rows).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    t = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    tile = load(x, (row, d[None, :], t[:, None]), mask=(t < L)[:, None] & (d < D)[None, :])
    tl.store(y_ptr + (row * D + d[:, None]) * L + t[None, :], tl.trans(tile), mask=(d < D)[:, None] & (t < L)[None, :])


def by_time(tensor: Tensor) -> Tensor:
    """Return x [B,D,L] as a scan is to read it: itself, or a copy with times adjacent where that is faster."""
    B, D, L = tensor.shape
    if tensor.stride(-1) in (0, 1) or B * L < STEPS_WORTH_A_COPY:
        return tensor
    copy = torch.empty(B, D, L, dtype=tensor.dtype, device=tensor.device)
    blocks = triton.cdiv(D, _BLOCK)
    launch(
        diagonal_scan_copy_kernel,
        (B * blocks * triton.cdiv(L, _BLOCK),),
        x=strided(tensor),
        y_ptr=copy,
        D=D,
        L=L,
        blocks_of_rows=blocks,
        BLOCK=_BLOCK,
        num_warps=4,
    )
    return copy
