"""Mamba's selective scan for a real A in Triton: what the kernels share.

A block of steps is computed at once, the state carried from block to block. A tile is [steps, modes, channels], so that
the steps of a channel's mode lie in one thread, which scans them alone.

Shapes in these files:
    batch, D, L     rows, channels and steps; WIDTH is D in kernels, where D is the skip
    N               modes of a channel
    texts           states: batch, or the number of sequences where cu_seqlens packs them into one row
    GROUPS          groups of channels that share B and C
    slots           programs that share the channels of a group
"""

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, strided
from ..common.triton_tiles import contiguous
from .inputs import Inputs
from .shapes import block_of_channels, block_of_steps, power_of_two

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
def _compose(decay, value, next_decay, next_value):
    """Compose h -> decay h + value and then h -> next_decay h + next_value."""
    return decay * next_decay, next_decay * value + next_value


@triton.jit
def exp_of_minus(size):
    """e^-size of size >= 0 to two roundings: those of size times log2 e would count for as much as size is large."""
    size = tl.where(size > 200, 200.0, size)
    whole = tl.floor(size * LOG2_E + 0.5)
    return tl.exp2(-whole) * tl.exp2(((whole * _LN_2_HIGH - size) + whole * _LN_2_LOW) * LOG2_E)


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
def find_text(cu_seqlens_ptr, row, L, BLOCK_L: tl.constexpr):
    """Find sequence `row` (int64): its row of u, its begin and end, and the number of its first block of steps."""
    if cu_seqlens_ptr is None:
        first = row * 0
        end = first + L
        number = row * tl.cdiv(L, BLOCK_L)
    else:
        first = tl.load(cu_seqlens_ptr + row).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + row + 1).to(tl.int64)
        number = first // BLOCK_L + row
        row = row * 0
    return row, first, end, number


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
    """Load [BLOCK_D] of [D], contiguous, in float32; 0 where not inside."""
    return tl.load(ptr + d, mask=d_inside, other=0.0).to(tl.float32)


@triton.jit
def sequence_offsets(stride, row, t, d):
    """Compute the offsets of a tile [BLOCK_L, BLOCK_D] in [batch,D,L]."""
    return (row * stride[0] + t * stride[2])[:, None] + (d * stride[1])[None, :]


@triton.jit
def load_sequence(x, row, t, d, inside):
    """Load [BLOCK_L, BLOCK_D] of x [batch,D,L] in float32; 0 where not inside."""
    return tl.load(x.ptr + sequence_offsets(x.strides, row, t, d), mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_steps(inputs, row, t, d, inside, d_inside, SOFTPLUS: tl.constexpr):
    """delta [BLOCK_L, BLOCK_D] as the recurrence has it, and its derivative by the input; 0 where not inside."""
    delta = load_sequence(inputs.delta, row, t, d, inside)
    if inputs.delta_bias_ptr is not None:
        delta += load_channels(inputs.delta_bias_ptr, d, d_inside)[None, :]
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


@triton.jit
def scan_block(step, u, A2, B, h, BLOCK_L: tl.constexpr):
    """The states [BLOCK_L, BLOCK_N, BLOCK_D] after steps from the state h: 2^(step A2) h + step B u.

    A step of 0 changes nothing.
    """
    decay = tl.exp2(step[:, None, :] * A2[None, :, :])
    value = (step * u)[:, None, :] * B
    i = tl.arange(0, BLOCK_L)[:, None, None]
    value += tl.where(i == 0, decay * h[None, :, :], 0.0)
    return scanned(decay, value, BLOCK_L)


@triton.jit
def scanned(decay, value, BLOCK_L: tl.constexpr):
    if BLOCK_L > 1:
        _, value = tl.associative_scan((decay, value), 0, _compose)
    return value


@triton.jit
def last_step(x, BLOCK_L: tl.constexpr):
    """x[-1]."""
    return tl.sum(tl.where(tl.arange(0, BLOCK_L)[:, None, None] == BLOCK_L - 1, x, 0.0), 0)


@triton.jit
def first_step(x, BLOCK_L: tl.constexpr):
    """x[0]."""
    return tl.sum(tl.where(tl.arange(0, BLOCK_L)[:, None, None] == 0, x, 0.0), 0)


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
        "BLOCK_L": block_of_steps(N, u.shape[2]),
        "BLOCK_N": power_of_two(N),
        "BLOCK_D": block_of_channels(N, width // groups),
    }


def numbers_of_a_tile(arguments: dict) -> int:
    """Count the numbers in a tile."""
    return arguments["BLOCK_L"] * arguments["BLOCK_N"] * arguments["BLOCK_D"]
