"""Mamba's selective scan for a real A in Triton: what the kernels share.

A block of steps is computed at once, the state carried from block to block. A tile is [steps, modes, channels]: a warp
has the channels and modes of it, a thread all steps of its modes, so that a scan is arithmetic alone, and few threads
have to add up the modes of a channel.

Shapes in these files:
    batch, D, L     rows, channels and steps; WIDTH is D in kernels, where D is the skip
    N               modes of a channel
    texts           states: batch, or the number of sequences where cu_seqlens packs them into one row
    GROUPS          groups of channels that share B and C
    kept            states that the forward pass keeps, one before each KEPT steps of a text
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, strided
from ..common.triton_tiles import contiguous
from .inputs import Inputs
from .shapes import KEPT, block_of_channels, power_of_two

LOG2_E = tl.constexpr(math.log2(math.e))
# ln 2 in two parts, the first of 15 bits: a small integer times it is exact.
_LN_2_HIGH, _LN_2_LOW = tl.constexpr(0.693145751953125), tl.constexpr(1.42860682030941723212e-6)


class KernelInputs(NamedTuple):
    """The tensors of a scan as kernels take them; what is small is contiguous."""

    u: Strided
    """[batch,D,L], and so delta and z."""
    delta: Strided
    B: Strided
    """[batch,B_GROUPS,N,L], or [D,N] constant in time; C likewise."""
    C: Strided
    z: Strided | None
    A_ptr: Any
    """[D,N]."""
    D_ptr: Any
    """[D] or None, and so delta_bias."""
    delta_bias_ptr: Any


@triton.jit
def exp_of_minus(size):
    """e^-size of size >= 0 to two roundings, 0 where it is below the normal numbers.

    A product of 2^-whole, made from its bits, and e^-rest: the rounding of size times log2 e alone would count for as
    much as size is large. A sum with 1.5 2^23 ends in the bits of the nearest integer.
    """
    near = tl.minimum(size, 87.0, propagate_nan=tl.PropagateNan.ALL)
    shifted = near * LOG2_E + 12582912.0
    whole = shifted - 12582912.0
    power = (0x3F800000 - (shifted.to(tl.int32, bitcast=True) << 23)).to(tl.float32, bitcast=True)
    rest = (whole * _LN_2_HIGH - near) + whole * _LN_2_LOW
    return tl.where(size > 87, 0.0, power * tl.exp2(rest * LOG2_E))


@triton.jit
def sigmoid(x, e):
    """1 / (1 + e^-x), with e = e^-|x|."""
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def _softplus(x, e):
    """log(1 + e^x), with e = e^-|x|: max(x, 0) + 2 artanh(e / (2 + e)), whose series at 1/3 has an error of 2e-9.

    From 20 on this is x, where torch's formula ends.
    """
    ratio = e / (2 + e)
    s = ratio * ratio
    series = 1 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9 + s * (1 / 11 + s * (1 / 13 + s / 15))))))
    return tl.maximum(x, 0.0) + 2 * ratio * series


@triton.jit
def channels_of_block(block, group, GROUP_WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """The channels d [BLOCK_D] (int64) of a block of a group, and which of them exist.

    The last one stands for those beyond it: with addresses that are not linear in `block` no register is spent on
    counting each of them up, and they are many.
    """
    within = block * BLOCK_D + tl.arange(0, BLOCK_D)
    d = group * GROUP_WIDTH + tl.minimum(within, GROUP_WIDTH - 1)
    return d.to(tl.int64), within < GROUP_WIDTH


@triton.jit
def load_channels(ptr, d, d_inside):
    """Load [1, BLOCK_D] of [D], contiguous, in float32; 0 where not inside, and where there is none."""
    if ptr is None:
        x = tl.zeros(d.shape, tl.float32)
    else:
        x = tl.load(ptr + d, mask=d_inside, other=0.0).to(tl.float32)
    return x[None, :]


@triton.jit
def sequence_offsets(stride, row, t, d):
    """Compute the offsets of a tile [BLOCK_L, BLOCK_D] in [batch,D,L]."""
    return (row * stride[0] + t * stride[2])[:, None] + (d * stride[1])[None, :]


@triton.jit
def load_sequence(x, row, t, d, inside):
    """Load [BLOCK_L, BLOCK_D] of x [batch,D,L] in float32; 0 where not inside."""
    return tl.load(x.ptr + sequence_offsets(x.strides, row, t, d), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def steps_of(delta, inside, SOFTPLUS: tl.constexpr):
    """Steps [BLOCK_L, BLOCK_D] as the recurrence has them, and their derivative by delta; 0 where not inside."""
    slope = 1.0
    if SOFTPLUS:
        e = exp_of_minus(tl.abs(delta))
        slope = sigmoid(delta, e)
        delta = _softplus(delta, e)
    return tl.where(inside, delta, 0.0), slope


@triton.jit
def load_matrix(x, row, group, t, t_inside, n, d, d_inside, N: tl.constexpr, GROUPS: tl.constexpr):
    """B or C in float32: [BLOCK_L, BLOCK_N, 1], or [1, BLOCK_N, BLOCK_D] where constant in time (GROUPS = 0)."""
    if GROUPS == 0:
        tile = x.ptr + n[:, None] * x.strides[1] + d[None, :] * x.strides[0]
        matrix = tl.load(tile, mask=(n < N)[:, None] & d_inside[None, :], other=0.0)[None, :, :]
    else:
        tile = x.ptr + row * x.strides[0] + group * x.strides[1] + n[None, :] * x.strides[2] + t[:, None] * x.strides[3]
        matrix = tl.load(tile, mask=t_inside[:, None] & (n < N)[None, :], other=0.0)[:, :, None]
    return matrix.to(tl.float32)


def by_group(matrix: Tensor) -> Tensor:
    """B or C with an axis of groups, unless it is constant in time."""
    return matrix.unsqueeze(1) if matrix.ndim == 3 else matrix


def _groups(*matrices: Tensor) -> int:
    """Count the groups of channels that share B and C."""
    return math.lcm(*(matrix.shape[1] for matrix in map(by_group, matrices) if matrix.ndim == 4))


def operands(inputs: Inputs) -> dict:
    """Collect the arguments that all kernels of the scan take."""
    u, delta, _, B, C, *_ = inputs
    B, C = by_group(B), by_group(C)
    (width, N), groups = inputs.A.shape, _groups(B, C)
    A, D, delta_bias = (contiguous(x) for x in (inputs.A, inputs.D, inputs.delta_bias))
    tensors = KernelInputs(strided(u), strided(delta), strided(B), strided(C), strided(inputs.z), A, D, delta_bias)
    return {
        "inputs": tensors,
        "cu_seqlens_ptr": contiguous(inputs.cu_seqlens),
        "L": u.shape[2],
        "WIDTH": width,
        "N": N,
        "GROUPS": groups,
        "B_GROUPS": B.shape[1] if B.ndim > 2 else 0,
        "C_GROUPS": C.shape[1] if C.ndim > 2 else 0,
        "SOFTPLUS": inputs.softplus,
        "KEPT": KEPT,
        "BLOCK_N": power_of_two(N),
        "BLOCK_D": block_of_channels(N, width // groups),
    }
