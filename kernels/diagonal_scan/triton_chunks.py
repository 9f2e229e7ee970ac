"""Diagonal recurrence with complex modes in Triton: chunks of time as rows of real products (what passes share).

A chunk of Q = CHUNK steps that starts from the state h gives, with k_l = 2 Re sum_n c_n b_n z_n^l,

    y_t = sum_{s <= t} k_{t-s} u_s + Re sum_n 2 c_n z_n^{t+1} h_n        h' = z^Q h + sum_s b z^{Q-1-s} u_s

which are products with three tables of a channel: Toeplitz, from states, into states. Gradients run through the same
tables, transposed, from the last chunk to the first. Zeros before a sequence make its steps whole chunks. What depends
on its true start is h0, where there is one: its outputs in the first chunk of r steps, counted from the start, and what
it leaves after them, z^r h0.

Operands are sums of bfloat16 terms of 8 bits: a number in bfloat16 is one, a float32 number three. Products of terms
that are smaller than the rounding of the result are left out.

Shapes in these files:
    B, D, L         rows, channels and steps of the inputs
    rows            states: B, or the number of sequences where cu_seqlens packs them into one row
    N               modes of a channel, in GROUPS of at most BLOCK_N; V = D GROUPS
    slots           programs that share the rows of a channel
    chunks          of all sequences of a channel, or room for them
A last axis of 2 has real and imaginary part, as one of 2 BLOCK_N has by turns.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import Strided, load, strided
from ..common.triton_tiles import HALF, block_of, contiguous, parts_of
from ..launch import interpreting, launch

# Modes at a time: more are added up from several runs. Where operands have three terms, registers hold no more.
MOST_MODES, MOST_MODES_OF_FLOAT32 = 32, 16
# Steps of a chunk. With more the tables take more memory, with fewer the states between chunks more work.
CHUNK = tl.constexpr(32)
# Powers z^(CHUNK 2^k) in the tables: the last is that of the most chunks of a tile.
LEVELS = tl.constexpr(5)
# Terms of tables, and of the products that states are sums of.
TERMS = 3

_BITS = tl.constexpr(CHUNK.value.bit_length())


class Modes(NamedTuple):
    """Parameters of the recurrence, each [D,N,2]."""

    z: Strided
    b: Strided
    c: Strided


class Tables(NamedTuple):
    """Tables that `diagonal_scan_tables_kernel` computes from the modes, contiguous.

    Their terms are bfloat16 numbers; in Triton's interpreter, which does not know those, there is one, float32.
    """

    into_ptr: Any
    """b z^(CHUNK-1-s) [V,terms,CHUNK,2 BLOCK_N]."""
    from_ptr: Any
    """The conjugate of 2 c z^(t+1) [V,terms,CHUNK,2 BLOCK_N]."""
    taps_ptr: Any
    """CHUNK zeros and k, with the skip in k_0 [V,terms,2 CHUNK]."""
    powers_ptr: Any
    """z^(l+1) float32 [V,2,CHUNK,BLOCK_N]; None where nobody needs it."""
    levels_ptr: Any
    """z^(CHUNK 2^k) as sums of two float32 numbers, the larger one first [V,LEVELS,2,2,BLOCK_N]: real, imaginary."""


class Texts(NamedTuple):
    """Positions of the sequences in the inputs [B,D,L]."""

    cu_seqlens_ptr: Any
    """Borders [rows + 1], contiguous; None: a row of inputs is a sequence."""
    L: int


@triton.jit
def times(a_real, a_imag, b_real, b_imag):
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real


@triton.jit
def power(z_real, z_imag, exponent):
    """z^exponent for exponents from 0 to CHUNK, by squares, in float64; zero to the 0 is one."""
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
def parts(x):
    """Real and imaginary part [..., N] of x [..., 2 N]."""
    return tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))


@triton.jit
def by_turns(real, imag):
    """[..., 2 N] of real and imaginary part [..., N]."""
    return tl.reshape(tl.join(real, imag), [real.shape[0], 2 * real.shape[1]])


@triton.jit
def load_modes(x, d, n, N):
    """Load real and imaginary part of modes n of x [D,N,2]; 0 beyond N."""
    return load(x, (d, n, 0), mask=n < N), load(x, (d, n, 1), mask=n < N)


@triton.jit
def store_modes(ptr, n, real, imag, mask):
    """Store real and imaginary part of modes n to [N,2], contiguous."""
    tl.store(ptr + 2 * n, real.to(tl.float32), mask=mask)
    tl.store(ptr + 2 * n + 1, imag.to(tl.float32), mask=mask)


@triton.jit
def float32_terms(x, TERMS: tl.constexpr):
    """Terms whose sum is x, float32."""
    if TERMS == 1:
        terms = (x,)
    else:
        first = x.to(tl.bfloat16)
        x -= first.to(tl.float32)
        second = x.to(tl.bfloat16)
        if TERMS == 2:
            terms = (first, second)
        else:
            terms = (first, second, (x - second.to(tl.float32)).to(tl.bfloat16))
    return terms


@triton.jit
def input_terms(x, TERMS: tl.constexpr):
    """Terms whose sum is x: as few as its dtype needs. TERMS are those of a float32 number."""
    if TERMS == 1 or x.dtype == tl.float32:
        terms = float32_terms(x.to(tl.float32), TERMS)
    elif x.dtype == tl.bfloat16:
        terms = (x,)
    else:
        terms = float32_terms(x.to(tl.float32), 2)
    return terms


@triton.jit
def load_terms(ptr, apart, TERMS: tl.constexpr, mask):
    """Load the terms of a table that lie so far apart; 0 where `mask` is False."""
    first = tl.load(ptr, mask=mask, other=0.0)
    if TERMS == 1:
        terms = (first,)
    else:
        second = tl.load(ptr + apart, mask=mask, other=0.0)
        if TERMS == 2:
            terms = (first, second)
        else:
            terms = (first, second, tl.load(ptr + 2 * apart, mask=mask, other=0.0))
    return terms


@triton.jit
def transposed(terms):
    if len(terms) == 1:
        turned = (tl.trans(terms[0]),)
    elif len(terms) == 2:
        turned = (tl.trans(terms[0]), tl.trans(terms[1]))
    else:
        turned = (tl.trans(terms[0]), tl.trans(terms[1]), tl.trans(terms[2]))
    return turned


@triton.jit
def add_product(total, a, b, TERMS: tl.constexpr):
    """total + a b for operands in terms, as exact as one in so many: the smallest products first."""
    for smaller in tl.static_range(TERMS):
        for i in tl.static_range(len(a)):
            if TERMS - 1 - smaller - i >= 0 and TERMS - 1 - smaller - i < len(b):
                total = tl.dot(a[i], b[TERMS - 1 - smaller - i], total, input_precision="ieee")
    return total


@triton.jit
def load_table(ptr, v, rows_inside, TERMS: tl.constexpr, HELD: tl.constexpr, BLOCK_N: tl.constexpr):
    """Load TERMS of the terms of channel v's table [V,HELD,CHUNK,2 BLOCK_N]; 0 where `rows_inside` [CHUNK] is False.

    Growing modes overflow there, where all that they meet is 0, and their product would be no number.
    """
    row, column = tl.arange(0, CHUNK)[:, None], tl.arange(0, 2 * BLOCK_N)[None, :]
    table = ptr + v * (HELD * CHUNK * 2 * BLOCK_N) + row * (2 * BLOCK_N) + column
    return load_terms(table, CHUNK * 2 * BLOCK_N, TERMS, rows_inside[:, None])


@triton.jit
def load_level(levels_ptr, v, LEVEL: tl.constexpr, length, BLOCK_N: tl.constexpr, CONJUGATE: tl.constexpr):
    """Load z^(CHUNK 2^LEVEL) [BLOCK_N] of channel v as sums of two: two real parts and two imaginary ones.

    0 where a sequence is shorter: growing modes may overflow there, and what they would multiply is 0.
    """
    n = tl.arange(0, BLOCK_N)
    inside = 0 * n + CHUNK * 2**LEVEL <= length
    number = levels_ptr + (v * LEVELS + LEVEL) * (4 * BLOCK_N) + n
    real, real_rest = tl.load(number, mask=inside, other=0.0), tl.load(number + BLOCK_N, mask=inside, other=0.0)
    imag = tl.load(number + 2 * BLOCK_N, mask=inside, other=0.0)
    imag_rest = tl.load(number + 3 * BLOCK_N, mask=inside, other=0.0)
    if CONJUGATE:
        imag, imag_rest = -imag, -imag_rest
    return real, real_rest, imag, imag_rest


@triton.jit
def load_power(powers_ptr, v, exponent, BLOCK_N: tl.constexpr):
    """Load z^exponent [BLOCK_N] of channel v for an exponent from 1 to CHUNK."""
    number = powers_ptr + (v * (2 * CHUNK) + exponent - 1) * BLOCK_N + tl.arange(0, BLOCK_N)
    return tl.load(number), tl.load(number + CHUNK * BLOCK_N)


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
def states_of_text(states_ptr, v, texts, rows, row, start, BLOCK_N: tl.constexpr):
    """Find where the states of a sequence's chunks lie in channel v: no sequence has more than up to the next one's."""
    if texts.cu_seqlens_ptr is None:
        chunks = (texts.L + CHUNK - 1) // CHUNK
        first = (v * rows + row) * chunks
    else:
        first = v * (texts.L // CHUNK + rows) + row + start // CHUNK
    return states_ptr + first * (2 * BLOCK_N)


@triton.jit
def _store_terms(ptr, apart, x, TERMS: tl.constexpr):
    for number in tl.static_range(TERMS):
        term = x.to(ptr.dtype.element_ty)
        tl.store(ptr + number * apart, term)
        x -= term.to(tl.float32)


@triton.jit
def _store_sum_of_two(ptr, apart, x):
    """x, float64, as two float32 numbers."""
    first = x.to(tl.float32)
    tl.store(ptr, first)
    tl.store(ptr + apart, (x - first.to(tl.float64)).to(tl.float32))


@triton.jit
def diagonal_scan_tables_kernel(
    modes,  # Modes
    d_skip_ptr,  # [D] or None
    tables,  # Tables
    N: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TERMS: tl.constexpr,
    OUTPUT_TERMS: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel."""
    v = tl.program_id(0).to(tl.int64)
    d, group = v // GROUPS, v % GROUPS
    l, here = tl.arange(0, CHUNK), tl.arange(0, BLOCK_N)
    n = group * BLOCK_N + here
    z_real, z_imag = load_modes(modes.z, d, n, N)
    real, imag = power(z_real[None, :], z_imag[None, :], l[:, None])
    next_real, next_imag = times(real, imag, z_real[None, :].to(tl.float64), z_imag[None, :].to(tl.float64))
    if tables.powers_ptr is not None:
        powers = tables.powers_ptr + v * (2 * CHUNK * BLOCK_N) + l[:, None] * BLOCK_N + here[None, :]
        tl.store(powers, next_real.to(tl.float32))
        tl.store(powers + CHUNK * BLOCK_N, next_imag.to(tl.float32))

    width: tl.constexpr = BLOCK_N * 2
    column = tl.arange(0, 2 * BLOCK_N)[None, :]
    b_real, b_imag = load_modes(modes.b, d, n, N)
    into_real, into_imag = times(b_real[None, :].to(tl.float64), b_imag[None, :].to(tl.float64), real, imag)
    into = tables.into_ptr + v * (TERMS * CHUNK * width) + (-l + (CHUNK - 1))[:, None] * width + column
    _store_terms(into, CHUNK * width, by_turns(into_real.to(tl.float32), into_imag.to(tl.float32)), TERMS)

    c_real, c_imag = load_modes(modes.c, d, n, N)
    c_real, c_imag = c_real[None, :].to(tl.float64), c_imag[None, :].to(tl.float64)
    later_real, later_imag = times(2 * c_real, 2 * c_imag, next_real, next_imag)
    later = tables.from_ptr + v * (OUTPUT_TERMS * CHUNK * width) + l[:, None] * width + column
    _store_terms(later, CHUNK * width, by_turns(later_real.to(tl.float32), -later_imag.to(tl.float32)), OUTPUT_TERMS)

    taps = 2 * tl.sum(c_real * into_real - c_imag * into_imag, 1)
    if d_skip_ptr is not None:
        taps += tl.where((l == 0) & (group == 0), tl.load(d_skip_ptr + d).to(tl.float64), 0.0)
    tap = tables.taps_ptr + v * (OUTPUT_TERMS * 2 * CHUNK) + l
    _store_terms(tap, 2 * CHUNK, (0.0 * l).to(tl.float32), OUTPUT_TERMS)
    _store_terms(tap + CHUNK, 2 * CHUNK, taps.to(tl.float32), OUTPUT_TERMS)

    real, imag = power(z_real, z_imag, 0 * n + CHUNK)
    for level in tl.static_range(LEVELS):
        number = tables.levels_ptr + (v * LEVELS + level) * (4 * BLOCK_N) + here
        _store_sum_of_two(number, BLOCK_N, real)
        _store_sum_of_two(number + 2 * BLOCK_N, BLOCK_N, imag)
        real, imag = times(real, imag, real, imag)


def modes_of(z: Tensor, b: Tensor, c: Tensor) -> Modes:
    """z, b, c [D,N] complex as kernels take them."""
    return Modes(*(strided(parts_of(tensor)) for tensor in (z, b, c)))


def state_of(state: Tensor | None) -> Strided | None:
    """A state [rows,D,N] complex as kernels take it."""
    return None if state is None else strided(parts_of(state))


def state_rows(u: Tensor, cu_seqlens: Tensor | None) -> int:
    return u.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1


class Plan:
    """Tables, tile sizes and positions of sequences that a pass needs, computed from modes and lengths.

    Arguments:
        d_skip: skip weights [D], which the taps get.
        u: inputs [B,D,L]; their dtype is that of outputs, and says of how many terms products are.
        gradients: whether passes for gradients will follow, whose states are outputs too.
        starts: whether sequences start from states.
    """

    def __init__(
        self,
        modes: Modes,
        d_skip: Tensor | None,
        u: Tensor,
        cu_seqlens: Tensor | None,
        *,
        gradients: bool,
        starts: bool,
    ):
        (D, N), (B, _, L), self.rows = modes.z.ptr.shape[:2], u.shape, state_rows(u, cu_seqlens)
        self.modes, chunk = modes, CHUNK.value
        self.block_n = min(MOST_MODES if u.dtype in HALF else MOST_MODES_OF_FLOAT32, block_of(N))
        self.groups = triton.cdiv(N, self.block_n)
        self.channels = D * self.groups
        self.chunks = B * triton.cdiv(L, chunk) if cu_seqlens is None else L // chunk + self.rows
        self.texts = Texts(contiguous(cu_seqlens), L)
        plain = interpreting(diagonal_scan_tables_kernel)
        self.terms = 1 if plain else TERMS
        self.terms_of_outputs = 1 if plain else 2 if u.dtype in HALF else TERMS
        held = self.terms if gradients else self.terms_of_outputs
        self.tile = {"N": N, "GROUPS": self.groups, "BLOCK_N": self.block_n, "TERMS": self.terms}

        def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(self.channels, *shape, dtype=dtype, device=u.device)

        term = torch.float32 if plain else torch.bfloat16
        self.tables = Tables(
            new(self.terms, chunk, 2 * self.block_n, dtype=term),
            new(held, chunk, 2 * self.block_n, dtype=term),
            new(held, 2 * chunk, dtype=term),
            new(2, chunk, self.block_n) if starts or gradients else None,
            new(LEVELS.value, 2, 2, self.block_n),
        )
        launch(
            diagonal_scan_tables_kernel,
            (self.channels,),
            modes=modes,
            d_skip_ptr=contiguous(d_skip),
            tables=self.tables,
            **self.tile,
            OUTPUT_TERMS=held,
            num_warps=4,
        )
