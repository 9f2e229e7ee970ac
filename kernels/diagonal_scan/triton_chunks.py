"""Diagonal recurrence with complex modes in Triton: chunks of time as columns of real products (what passes share).

With w = z^0 .. z^(CHUNK-1) and T the Toeplitz matrix of k_l = 2 Re sum_n c_n b_n z_n^l, a chunk of r steps that starts
from the state h gives

    y_t = sum_s T_{t,s} u_s + 2 Re sum_n c_n z_n w_{t,n} h_n        h' = z^r h + b sum_i w_i u_{r-1-i}

The first line counts time from the chunk's start and the second from its end: so one table w serves both, and a last
chunk of r < CHUNK steps is as exact as the others. The gradients are the same two lines with their roles exchanged,
run from the end. The state goes from chunk to chunk in float64: it is N numbers, and the rounding of z^CHUNK, the same
each time, would add up.

Shapes in these files:
    B, D, L         rows, channels and steps of the inputs
    rows            states: B, or the number of sequences where cu_seqlens packs them into one row
    N               modes of a channel, in GROUPS of at most BLOCK_N; V = D GROUPS
    CHUNK           steps of a chunk; COLUMNS chunks are the columns of one product
    slots           programs that share the rows of a channel
A last axis of 2 has real and imaginary part.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, load, strided
from ..common.triton_tiles import block_of, contiguous, dot, parts_of
from ..launch import launch

# Modes at a time: more are added up from several runs.
MOST_MODES = 32
# Steps of a chunk: the fewest with which the columns of one product hold a sequence, else the most. Beyond 32 the
# tables of float32 numbers, as three terms each, no longer fit the registers.
CHUNKS = (16, 32)
COLUMNS = 16
# Products of 32 rows, 16 a warp.
WARPS = 2

_BITS = tl.constexpr(max(CHUNKS).bit_length())


class Modes(NamedTuple):
    """Parameters of the recurrence, each [D,N,2]."""

    z: Strided
    b: Strided
    c: Strided


class Tables(NamedTuple):
    """Tables that `diagonal_scan_tables_kernel` computes from the modes."""

    powers_ptr: Any
    """w [V,2,CHUNK,BLOCK_N] float32, contiguous."""
    taps_ptr: Any
    """k [V,CHUNK] float32, contiguous, with the skip in k_0."""


class Texts(NamedTuple):
    """Positions of the sequences in the inputs [B,D,L], and of their chunks' states among all states."""

    cu_seqlens_ptr: Any
    """Borders [rows + 1], contiguous; None: a row of inputs is a sequence."""
    L: int
    rows: int
    chunks: int
    """Of all sequences of a channel, or room for them."""

    do_not_specialize = ("rows", "chunks")


@triton.jit
def times(a_real, a_imag, b_real, b_imag):
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real


@triton.jit
def power(z_real, z_imag, exponent):
    """z^exponent for exponents from 0 to the most steps of a chunk, by squares, in float64; zero to the 0 is one."""
    z_real, z_imag = z_real.to(tl.float64), z_imag.to(tl.float64)
    imag = 0.0 * exponent.to(tl.float64) + 0.0 * z_imag
    real = 1.0 + imag
    for bit in tl.static_range(_BITS):
        with_real, with_imag = times(real, imag, z_real, z_imag)
        taken = ((exponent >> bit) & 1) != 0
        real, imag = tl.where(taken, with_real, real), tl.where(taken, with_imag, imag)
        z_real, z_imag = times(z_real, z_imag, z_real, z_imag)
    return real, imag


@triton.jit
def load_modes(x, d, n, N):
    """Load real and imaginary part of modes n of x [D,N,2]; 0 beyond N."""
    return load(x, (d, n, 0), mask=n < N), load(x, (d, n, 1), mask=n < N)


@triton.jit
def load_state(h, row, d, n, N):
    """Load modes n of h [rows,D,N,2] in float64; zeros where h is None."""
    if h is None:
        real = tl.zeros([n.shape[0]], tl.float64)
        imag = real
    else:
        real = load(h, (row, d, n, 0), mask=n < N).to(tl.float64)
        imag = load(h, (row, d, n, 1), mask=n < N).to(tl.float64)
    return real, imag


@triton.jit
def store_modes(ptr, n, N, real, imag):
    """Store real and imaginary part of modes n to [N,2], contiguous."""
    tl.store(ptr + 2 * n, real.to(tl.float32), mask=n < N)
    tl.store(ptr + 2 * n + 1, imag.to(tl.float32), mask=n < N)


@triton.jit
def load_powers(powers_ptr, v, length, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr):
    """w [CHUNK, BLOCK_N] of channel v, real and imaginary, for a sequence of so many steps.

    Growing modes overflow beyond them, where all that w meets is 0, and their product would be no number.
    """
    time = tl.arange(0, CHUNK)[:, None]
    powers = powers_ptr + v * (2 * CHUNK * BLOCK_N) + time * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    inside = time < length
    return tl.load(powers, mask=inside, other=0.0), tl.load(powers + CHUNK * BLOCK_N, mask=inside, other=0.0)


@triton.jit
def find_text(texts, row):
    """Find the sequence of a row of states (int64): its row of inputs, its start there (int64), and its length."""
    if texts.cu_seqlens_ptr is None:
        of_u, start, length = row, 0 * row, texts.L + (0 * row).to(tl.int32)
    else:
        of_u, start = 0 * row, tl.load(texts.cu_seqlens_ptr + row).to(tl.int64)
        length = (tl.load(texts.cu_seqlens_ptr + row + 1) - start).to(tl.int32)
    return of_u, start, length


@triton.jit
def states_of_text(states_ptr, v, texts, row, start, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr):
    """Find where the states of a sequence's chunks lie in channel v: no sequence has more than up to the next one's."""
    first = v * texts.chunks
    if texts.cu_seqlens_ptr is None:
        first += row * ((texts.L + CHUNK - 1) // CHUNK)
    else:
        first += row + start // CHUNK
    return states_ptr + first * (2 * BLOCK_N)


@triton.jit
def from_start(length, chunk, CHUNK: tl.constexpr):
    """Times [CHUNK, chunks] of a sequence counted from each chunk's start, and which of them it has."""
    time = chunk[None, :] * CHUNK + tl.arange(0, CHUNK)[:, None]
    return time, time < length


@triton.jit
def from_end(length, chunk, first, CHUNK: tl.constexpr):
    """The same counted back from each chunk's end (of the last: the sequence's), beginning `first` before it."""
    begin = chunk[None, :] * CHUNK
    step = tl.minimum(length - begin, CHUNK) - 1 - first - tl.arange(0, CHUNK)[:, None]
    return begin + step, step >= 0


@triton.jit
def mode_sums(w_real, w_imag, tile, PRECISION: tl.constexpr):
    """sum w x over the steps of each chunk: [BLOCK_N, COLUMNS] of x [CHUNK, COLUMNS]."""
    return dot(tl.trans(w_real), tile, PRECISION), dot(tl.trans(w_imag), tile, PRECISION)


@triton.jit
def diagonal_scan_tables_kernel(
    modes,  # Modes
    d_skip_ptr,  # [D] or None
    powers_ptr,  # [V,2,CHUNK,BLOCK_N] float32, contiguous: w
    taps_ptr,  # [V,CHUNK] float32, contiguous: k, the skip in k_0
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel."""
    v = tl.program_id(0).to(tl.int64)
    d, group = v // GROUPS, v % GROUPS
    l, n = tl.arange(0, CHUNK), group * BLOCK_N + tl.arange(0, BLOCK_N)
    z_real, z_imag = load_modes(modes.z, d, n, N)
    real, imag = power(z_real[None, :], z_imag[None, :], l[:, None])
    powers = powers_ptr + v * (2 * CHUNK * BLOCK_N) + l[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    tl.store(powers, real.to(tl.float32))
    tl.store(powers + CHUNK * BLOCK_N, imag.to(tl.float32))
    b_real, b_imag = load_modes(modes.b, d, n, N)
    c_real, c_imag = load_modes(modes.c, d, n, N)
    both_real, both_imag = times(c_real.to(tl.float64), c_imag.to(tl.float64), b_real, b_imag)
    taps = 2 * tl.sum(both_real[None, :] * real - both_imag[None, :] * imag, 1)
    if d_skip_ptr is not None:
        taps += tl.where((l == 0) & (group == 0), tl.load(d_skip_ptr + d).to(tl.float64), 0.0)
    tl.store(taps_ptr + v * CHUNK + l, taps.to(tl.float32))


def by_time(tensor: Tensor) -> Tensor:
    """Return the tensor with times adjacent in memory, copied if need be: a program reads those of one channel."""
    return tensor if tensor.stride(-1) in (0, 1) else tensor.contiguous()


def modes_of(z: Tensor, b: Tensor, c: Tensor) -> Modes:
    """z, b, c [D,N] complex as kernels take them."""
    return Modes(*(strided(parts_of(tensor)) for tensor in (z, b, c)))


def state_of(state: Tensor | None) -> Strided | None:
    """A state [rows,D,N] complex as kernels take it."""
    return None if state is None else strided(parts_of(state))


def state_rows(u: Tensor, cu_seqlens: Tensor | None) -> int:
    return u.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1


def chunk_of(length: int) -> int:
    """CHUNK for sequences of about so many steps."""
    return next((size for size in CHUNKS if size * COLUMNS >= length), CHUNKS[-1])


class Plan:
    """Tables, tile sizes and positions of sequences that a pass needs, computed from modes and lengths."""

    def __init__(self, modes: Modes, d_skip: Tensor | None, u: Tensor, cu_seqlens: Tensor | None):
        (D, N), (B, _, L), self.rows = modes.z.ptr.shape[:2], u.shape, state_rows(u, cu_seqlens)
        self.modes = modes
        self.chunk = chunk_of(L if cu_seqlens is None else triton.cdiv(L, self.rows))
        self.block_n = min(MOST_MODES, block_of(N))
        self.groups = triton.cdiv(N, self.block_n)
        self.channels = D * self.groups
        self.chunks = B * triton.cdiv(L, self.chunk) if cu_seqlens is None else L // self.chunk + self.rows
        self.texts = Texts(contiguous(cu_seqlens), L, self.rows, self.chunks)
        self.tile = {"N": N, "GROUPS": self.groups, "BLOCK_N": self.block_n, "CHUNK": self.chunk}
        new = {"dtype": torch.float32, "device": u.device}
        powers = torch.empty(self.channels, 2, self.chunk, self.block_n, **new)
        self.tables = Tables(powers, torch.empty(self.channels, self.chunk, **new))
        launch(
            diagonal_scan_tables_kernel,
            (self.channels,),
            modes=modes,
            d_skip_ptr=contiguous(d_skip),
            powers_ptr=self.tables.powers_ptr,
            taps_ptr=self.tables.taps_ptr,
            **self.tile,
            num_warps=4,
        )
