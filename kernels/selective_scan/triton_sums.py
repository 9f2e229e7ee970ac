"""Sums of what programs leave of a gradient, each in one order, all in one launch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch

BLOCK = 1024


class Sums(NamedTuple):
    """Tensors to sum over their first axis: of each one the memory, the sizes and where the sum goes."""

    parts_ptrs: tuple[Any, ...]
    """[count, size] float32, contiguous."""
    total_ptrs: tuple[Any, ...]
    """[size], contiguous, of any dtype."""
    counts: tuple[int, ...]
    sizes: tuple[int, ...]


@triton.jit
def selective_scan_sums_kernel(sums, BLOCK: tl.constexpr):
    """Each program sums BLOCK numbers of one tensor, one part after the other."""
    block = tl.program_id(0)
    for which in tl.static_range(len(sums.sizes)):
        size, blocks = sums.sizes[which], tl.cdiv(sums.sizes[which], BLOCK)
        if (block >= 0) & (block < blocks):
            number = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            total = tl.zeros([BLOCK], tl.float32)
            parts_ptr = sums.parts_ptrs[which] + number
            for _ in tl.range(0, sums.counts[which], loop_unroll_factor=4):
                total += tl.load(parts_ptr, mask=number < size, other=0.0)
                parts_ptr += size
            tl.store(sums.total_ptrs[which] + number, total, mask=number < size)
        block -= blocks


def summed(parts: Sequence[Tensor | None], like: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sum of each of the `parts` [count, ...] over its first axis, of the shape and dtype of the tensor of `like`
    in its place; None for None."""
    totals = [None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in like]
    given = [(part, total) for part, total in zip(parts, totals) if part is not None and total is not None]
    sums = Sums(
        tuple(part for part, _ in given),
        tuple(total for _, total in given),
        tuple(part.shape[0] for part, _ in given),
        tuple(total.numel() for _, total in given),
    )
    blocks = sum(triton.cdiv(size, BLOCK) for size in sums.sizes)
    launch(selective_scan_sums_kernel, (blocks,), sums=sums, BLOCK=BLOCK, num_warps=4)
    return totals
