"""A tensor as one parameter of a kernel: where it begins, and how far apart its elements lie along each axis."""

from typing import Any, NamedTuple, overload

import triton
import triton.language as tl
from torch import Tensor


class Strided(NamedTuple):
    """A tensor and its strides, which may be any: broadcast (0), transposed, with gaps.

    A kernel reads its element [i, j, ...] with `load(x, (i, j, ...))`, where the indices are numbers or blocks that
    broadcast against one another: with b a number, t [BLOCK_T, 1] and d [1, BLOCK_D], the block [BLOCK_T, BLOCK_D].
    An index whose offset can pass 2^31 is int64.
    """

    ptr: Any
    """The tensor outside a kernel, a pointer to its first element inside."""
    strides: tuple[int, ...]
    """In elements, one for each axis; of an axis of one element, which may have any, 0, or 1 if it is the last."""


@overload
def strided(tensor: Tensor) -> Strided: ...


@overload
def strided(tensor: Tensor | None) -> Strided | None: ...


def strided(tensor: Tensor | None) -> Strided | None:
    """A tensor as a kernel takes it; None stays None, and the kernel is then compiled without it."""
    return None if tensor is None else Strided(tensor, strides(tensor))


def strides(tensor: Tensor) -> tuple[int, ...]:
    """The strides of a tensor as a kernel takes them, so that layouts that differ in no address are one.

    An axis of one element has the stride 0, or 1 if it is the last: what is compiled for rows of any length then serves
    rows of one element.
    """
    shape, given = tensor.shape, tensor.stride()
    if 1 not in shape:
        return given
    known = [0 if size == 1 else stride for size, stride in zip(shape, given)]
    if shape[-1] == 1:
        known[-1] = 1
    return tuple(known)


@triton.jit
def at(x, index):
    """Compute the addresses of x[index]."""
    address = x.ptr
    for axis in tl.static_range(len(index)):
        address += index[axis] * x.strides[axis]
    return address


@triton.jit
def load(x, index, mask=None, other=0.0):
    """Read x[index]; where `mask` is False nothing is read and `other` stands there."""
    if mask is None:
        value = tl.load(at(x, index))
    else:
        value = tl.load(at(x, index), mask=mask, other=other)
    return value


@triton.jit
def store(x, index, value, mask=None):
    """Write `value` to x[index] where `mask` is True."""
    tl.store(at(x, index), value, mask=mask)
