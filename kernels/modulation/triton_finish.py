"""The last step of the backward passes of both FiLMs, in Triton: what programs have summed, added up by one kernel.

Each gradient of a parameter is a sum over parts, in one order, times the gate or not, in the dtype of the parameter.

Shapes: B rows of G grids, D columns.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import launch
from .triton_gradients import TokenSums

# Parts and numbers of a tile where parts are many, and where they are few.
MANY, OF_MANY = tl.constexpr(32), tl.constexpr(128)
FEW, OF_FEW = tl.constexpr(4), tl.constexpr(1024)
# What a program finishes, by its number along the second axis of the grid.
TABLE, VECTORS, PARTS, GATE = (tl.constexpr(value) for value in range(4))


class Finished(NamedTuple):
    """Gradients that are made of parts, contiguous."""

    table: Any  # [B,G,2D]
    bias: Any  # [2D]
    gate: Any  # one number
    ln_weight: Any  # [D], or None: no norm
    ln_bias: Any  # [D] or None
    of_parts: Any  # that of keys or of weights: a plain sum of parts of its size


@triton.jit
def _sum_of_parts(ptr, count, stride, index, inside, BLOCK: tl.constexpr):
    """The numbers `index` [N] summed over `count` parts that lie `stride` apart."""
    total = tl.zeros(index.shape, tl.float32)
    for start in range(0, count, BLOCK):
        part = start + tl.arange(0, BLOCK).to(tl.int64)
        mask = (part < count)[:, None] & inside[None, :]
        total += tl.sum(tl.load(ptr + part[:, None] * stride + index[None, :], mask=mask, other=0.0), 0)
    return total


@triton.jit(do_not_specialize=["B", "G", "slots", "parts", "numbers"])
def finish_kernel(
    sums,  # TokenSums
    parts_ptr,  # [parts,numbers] float32, contiguous
    gate_ptr,  # one number
    gradients,  # Finished, written
    B,
    G,
    slots,
    parts,
    numbers,
    D: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr,  # for each of which a program has left a sum for the gate
):
    """Each program takes a block of the numbers of one gradient: the table's, a vector's, that of parts, the gate's."""
    block = tl.program_id(0)
    gate = tl.load(gate_ptr).to(tl.float32)
    width = (G + 1).to(tl.int64) * 2 * D
    if tl.program_id(1) == TABLE:
        blocks = tl.cdiv(G * 2 * D, OF_FEW)
        b = (block // blocks).to(tl.int64)
        index = block % blocks * OF_FEW + tl.arange(0, OF_FEW)
        if b < B:
            inside = index < G * 2 * D
            total = _sum_of_parts(sums.table + b * slots * width, slots, width, index, inside, FEW)
            tl.store(gradients.table + b * G * 2 * D + index, gate * total, mask=inside)
    elif tl.program_id(1) == VECTORS:
        index = block * OF_MANY + tl.arange(0, OF_MANY)
        total = _sum_of_parts(sums.table + (width - 2 * D), B * slots, width, index, index < 2 * D, MANY)
        tl.store(gradients.bias + index, gate * total, mask=index < 2 * D)
        if sums.norm is not None:
            total = _sum_of_parts(sums.norm, B * slots, 2 * D, index, index < 2 * D, MANY)
            tl.store(gradients.ln_weight + index, total, mask=index < D)
            tl.store(gradients.ln_bias + (index - D), total, mask=(index >= D) & (index < 2 * D))
    elif tl.program_id(1) == PARTS:
        index = block.to(tl.int64) * OF_FEW + tl.arange(0, OF_FEW)
        inside = index < numbers
        total = _sum_of_parts(parts_ptr, parts, numbers, index, inside, FEW)
        tl.store(gradients.of_parts + index, total, mask=inside)
    elif block == 0:
        index = tl.arange(0, OF_FEW)
        count = B * slots * COLUMN_BLOCKS
        total = tl.zeros([OF_FEW], tl.float32)
        for start in range(0, count, OF_FEW):
            total += tl.load(sums.gate + start + index, mask=start + index < count, other=0.0)
        tl.store(gradients.gate, tl.sum(total, 0))


def finish(
    sums: TokenSums,
    parts: Tensor,
    table: Tensor,
    bias: Tensor,
    gate: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    of_parts: Tensor,
) -> Finished:
    """Compute the gradients of table, bias, gate, a norm's vectors and of the tensor `of_parts`, in their dtypes."""
    new = [
        None if like is None else torch.empty(like.shape, dtype=like.dtype, device=like.device)
        for like in (table, bias, gate, ln_weight, ln_bias, of_parts)
    ]
    (B, G, two_D), numbers = table.shape, of_parts.numel()
    few = OF_FEW.value
    blocks = max(
        B * triton.cdiv(G * two_D, few),
        triton.cdiv(two_D, OF_MANY.value),
        triton.cdiv(numbers, few),
    )
    launch(
        finish_kernel,
        (blocks, 4),
        sums=sums,
        parts_ptr=parts,
        gate_ptr=gate,
        gradients=Finished(*new),
        B=B,
        G=G,
        slots=sums.table.shape[0] // B,
        parts=parts.shape[0],
        numbers=numbers,
        D=two_D // 2,
        COLUMN_BLOCKS=sums.gate.shape[1],
        num_warps=4,
    )
    return Finished(*new)
