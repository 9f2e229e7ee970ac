"""Sums of the parts of gradients that programs leave, each in one order, all in one launch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch

BLOCK = 1024


class Sum(NamedTuple):
    """A tensor to sum over its first axis."""

    parts_ptr: Any
    """[parts,size] float32, contiguous."""
    total_ptr: Any
    """[size], contiguous, of any dtype."""
    parts: int
    size: int

    do_not_specialize = ("parts", "size")
    do_not_specialize_on_alignment = ("parts_ptr", "total_ptr")


@triton.jit
def selective_scan_sums_kernel(
    sums,  # a tuple of Sum
    BLOCK: tl.constexpr,
):
    """Each program sums BLOCK numbers of one tensor, one part after the other."""
    block = tl.program_id(0)
    for which in tl.static_range(len(sums)):
        size, blocks = sums[which].size, tl.cdiv(sums[which].size, BLOCK)
        if (block >= 0) & (block < blocks):
            number = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            parts_ptr = sums[which].parts_ptr + number
            total = tl.zeros([BLOCK], tl.float32)
            for _ in tl.range(0, sums[which].parts, loop_unroll_factor=4):
                total += tl.load(parts_ptr, mask=number < size, other=0.0)
                parts_ptr += size
            tl.store(sums[which].total_ptr + number, total, mask=number < size)
        block -= blocks


def summed(parts: Sequence[Tensor | None], like: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The sum of each of `parts` [count, ...] over its first axis, of the shape and dtype of the tensor in the same
    place of `like`; None for None."""
    totals = [None if x is None else x.new_empty(x.shape) for x in like]
    sums = tuple(
        Sum(part, total, part.shape[0], total.numel())
        for part, total in zip(parts, totals)
        if part is not None and total is not None
    )
    blocks = sum(triton.cdiv(of.size, BLOCK) for of in sums)
    launch(selective_scan_sums_kernel, (blocks,), sums=sums, BLOCK=BLOCK, num_warps=4)
    return totals
