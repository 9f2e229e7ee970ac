"""Parts shared by Triton kernels: products at a stated precision, tile sizes, the bits of `random.py`.

Strides come as tuples, one number for each axis of the tensor before them. Offsets are 64-bit: a batch can hold more
than 2^31 numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..launch import interpreting
from .random import DRAW_BITS, GOLDEN_RATIO, MIX_1, MIX_2

HALF = (torch.float16, torch.bfloat16)
# What a kernel calls the dtypes.
DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# Programs that fill a GPU.
PROGRAMS = 256
# Unsigned, as Triton computes them.
_GOLDEN_RATIO, _MIX_1, _MIX_2 = (tl.constexpr(value % 2**64) for value in (GOLDEN_RATIO, MIX_1, MIX_2))
_DRAW_SHIFT = tl.constexpr(64 - DRAW_BITS)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a b in float32: of equal 16-bit operands as they are (products are exact), else of float32 at PRECISION."""
    if a.dtype == b.dtype and a.dtype.primitive_bitwidth == 16:
        return tl.dot(a, b, out_dtype=tl.float32)
    return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)


def dot_precision(kernel: triton.runtime.KernelInterface, *tensors: Tensor) -> str:
    """Return the precision of float32 products: operands as two or three bfloat16 terms, all on tensor cores.

    bf16x6 is float32-grade (rms error 1e-7 of the output). Where all tensors have 16 bits, an operand made from them
    needs no more than bf16x3 (6e-6 against their own rounding of 4e-3 or 5e-4). The interpreter knows float32 alone.
    """
    if interpreting(kernel):
        return "ieee"
    return "bf16x3" if all(tensor.dtype in HALF for tensor in tensors) else "bf16x6"


def pipeline_stages(*tensors: Tensor) -> int:
    """num_stages: where products are of three terms, registers do not hold the next tiles too."""
    return 2 if all(tensor.dtype in HALF for tensor in tensors) else 1


def block_of(size: int, smallest: int = 16) -> int:
    """The power of two that holds `size`, at least `smallest` (a product's operands have 16 rows and columns)."""
    return max(smallest, triton.next_power_of_2(size))


# Tokens of a program that sums over them, or walks through them.
BLOCK_OF_TOKENS = 32


def block_of_tokens(B: int, T: int) -> int:
    """BLOCK_T of programs that each read the other operands anew: a product has at least 16 rows; with more of them
    fewer programs are left, which pays once they fill a GPU."""
    return BLOCK_OF_TOKENS if B * triton.cdiv(T, BLOCK_OF_TOKENS) >= PROGRAMS else 16


def slots_of(blocks: int, programs: int, fillings: int = 1) -> tuple[int, int]:
    """(slots, blocks_per_slot): blocks that a program takes one after the other, divided among slots so that `programs`
    in each fill a GPU about `fillings` times. What the slots sum up is added afterwards, in one order."""
    blocks_per_slot = triton.cdiv(blocks, min(blocks, triton.cdiv(fillings * PROGRAMS, programs)))
    return triton.cdiv(blocks, blocks_per_slot), blocks_per_slot


@triton.jit
def token_block(T, BLOCK_T: tl.constexpr):
    """The row b and the tokens t [BLOCK_T], both int64, of a program: as many programs a row as it has blocks."""
    blocks = tl.cdiv(T, BLOCK_T)
    t = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    return (tl.program_id(0) // blocks).to(tl.int64), t


@triton.jit
def _mix(bits):
    bits = (bits ^ (bits >> 30)) * _MIX_1
    bits = (bits ^ (bits >> 27)) * _MIX_2
    return bits ^ (bits >> 31)


@triton.jit
def random_bits(seed, index):
    """`random.random_bits`: 24 uniform bits for each element index (int64) of the stream `seed` (int64)."""
    return (_mix(_mix(seed.to(tl.uint64)) + (index + 1).to(tl.uint64) * _GOLDEN_RATIO) >> _DRAW_SHIFT).to(tl.int32)


def strides(tensor: Tensor | None) -> tuple[int, ...] | None:
    """Return a tensor's strides as a kernel takes them; None for None."""
    return None if tensor is None else tensor.stride()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """A small parameter as kernels want it, which have no strides for it; None for None."""
    return None if tensor is None else tensor.contiguous()


def parts_of(tensor: Tensor) -> Tensor:
    """Real and imaginary part in a last axis of two: a view, unless the tensor is a conjugate not yet computed."""
    return torch.view_as_real(tensor.resolve_conj())
