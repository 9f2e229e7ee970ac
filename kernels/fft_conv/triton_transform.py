"""Transforms of a power of two as products with small Fourier matrices, in Triton: what the Monarch kernels share.

A tile is [HEIGHT, WIDTH] numbers of a row, n = WIDTH i + j; the number at [k, m] of its transform is that of frequency
k + HEIGHT m. A pair is two rows of the batch, as real and imaginary part.
"""

import triton
import triton.language as tl

from ..common.strided import at, load
from ..common.triton_angles import sine_and_cosine
from ..common.triton_tiles import dot
from .triton_products import add_products


@triton.jit
def roots(a, b, STEP):
    """exp(-2 pi i a b / N), real and imaginary part [a, b], for STEP = 2^32 / N: whole steps wrap around at a turn."""
    sine, cosine = sine_and_cosine((a[:, None] * b[None, :]).to(tl.uint32) * STEP, 0.0)
    return cosine, -sine


@triton.jit
def times(a_real, a_imag, b_real, b_imag):
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real


@triton.jit
def product(a_real, a_imag, b_real, b_imag, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Multiply complex matrices by four products of real ones."""
    a_real, a_imag, b_real, b_imag = a_real.to(OPERAND), a_imag.to(OPERAND), b_real.to(OPERAND), b_imag.to(OPERAND)
    real = dot(a_real, b_real, PRECISION) - dot(a_imag, b_imag, PRECISION)
    return real, dot(a_real, b_imag, PRECISION) + dot(a_imag, b_real, PRECISION)


@triton.jit
def transform(
    real,
    imag,
    ROWS: tl.constexpr,  # of the tile; the others of HEIGHT are zeros
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[ROWS, WIDTH] -> the transform [HEIGHT, WIDTH], divided by HEIGHT."""
    k, m = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
    root_real, root_imag = roots(k, tl.arange(0, ROWS), 2**32 // HEIGHT)
    real, imag = product(root_real, root_imag, real, imag, OPERAND, PRECISION)
    root_real, root_imag = roots(k, m, 2**32 // (HEIGHT * WIDTH))
    real, imag = times(real, imag, root_real / HEIGHT, root_imag / HEIGHT)
    root_real, root_imag = roots(m, m, 2**32 // WIDTH)
    return product(real, imag, root_real, root_imag, OPERAND, PRECISION)


@triton.jit
def transform_back(
    real,
    imag,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """[HEIGHT, WIDTH] -> the first ROWS rows of its inverse transform, times its size."""
    k, m = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
    root_real, root_imag = roots(m, m, 2**32 // WIDTH)
    real, imag = product(real, imag, root_real, -root_imag, OPERAND, PRECISION)
    root_real, root_imag = roots(k, m, 2**32 // (HEIGHT * WIDTH))
    real, imag = times(real, imag, root_real, -root_imag)
    root_real, root_imag = roots(tl.arange(0, ROWS), k, 2**32 // HEIGHT)
    return product(root_real, -root_imag, real, imag, OPERAND, PRECISION)


@triton.jit
def places(HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Compute the positions of the numbers of a row, [HEIGHT, WIDTH]."""
    return tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def frequencies(first, every, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Compute the frequencies of a transform's numbers: first + every (k + HEIGHT m), [HEIGHT, WIDTH]."""
    return first + every * (tl.arange(0, HEIGHT)[:, None] + HEIGHT * tl.arange(0, WIDTH)[None, :])


@triton.jit
def apply_spectrum(real, imag, spectrum, d, f, N, WIDTH: tl.constexpr, CONJUGATE: tl.constexpr):
    """Times the taps' spectrum at f, of which half is kept, or times its conjugate; divided by WIDTH."""
    half = f * 2 > N
    kept = tl.where(half, N - f, f).to(tl.int64)
    of_taps_real, of_taps_imag = load(spectrum, (d, kept, 0)), load(spectrum, (d, kept, 1))
    if CONJUGATE:
        of_taps_imag = tl.where(half, of_taps_imag, -of_taps_imag)
    else:
        of_taps_imag = tl.where(half, -of_taps_imag, of_taps_imag)
    return times(real, imag, of_taps_real / WIDTH, of_taps_imag / WIDTH)


@triton.jit
def load_pair(x, gate, pair, d, t, B, L):
    """Load steps t of rows 2 pair and 2 pair + 1, in float32 times the gate, or as they are; 0 where there is none."""
    first, second = t < L, t < tl.where(2 * pair + 1 < B, L, 0)
    index = 2 * pair, d, t.to(tl.int64)
    row = at(x, index)
    real, imag = tl.load(row, mask=first, other=0.0), tl.load(row + x.strides[0], mask=second, other=0.0)
    if gate is not None:
        row = at(gate, index)
        real = real.to(tl.float32) * tl.load(row, mask=first, other=0.0).to(tl.float32)
        imag = imag.to(tl.float32) * tl.load(row + gate.strides[0], mask=second, other=0.0).to(tl.float32)
    return real, imag


@triton.jit
def add_products_of_pair(real, imag, products, pair, d, t, B, L, REVERSE: tl.constexpr):
    """Add the products of inputs of both rows, or where time runs backwards their gradients; None: nothing."""
    if products is not None:
        if REVERSE:
            of_first, of_second = load_pair(products, None, pair, d, t, B, L)
            real += of_first
            imag += of_second
        else:
            first, second = t < L, t < tl.where(2 * pair + 1 < B, L, 0)
            real = add_products(real, products, (2 * pair, d, 0 * pair, t, t, first))
            imag = add_products(imag, products, (2 * pair + 1, d, 0 * pair, t, t, second))
    return real, imag


@triton.jit
def finish_pair(real, imag, x, d_skip_ptr, gate, y, pair, d, t, B, L, REVERSE: tl.constexpr):
    """Add the skip, gate the output (where time runs forward) and store both rows."""
    if d_skip_ptr is not None:
        x_real, x_imag = load_pair(x, gate if REVERSE else None, pair, d, t, B, L)
        d_skip = tl.load(d_skip_ptr + d).to(tl.float32)
        real += d_skip * x_real.to(tl.float32)
        imag += d_skip * x_imag.to(tl.float32)
    if gate is not None and not REVERSE:
        gate_real, gate_imag = load_pair(gate, None, pair, d, t, B, L)
        real *= gate_real.to(tl.float32)
        imag *= gate_imag.to(tl.float32)
    row = at(y, (2 * pair, d, t.to(tl.int64)))
    tl.store(row, real, mask=t < L)
    tl.store(row + y.strides[0], imag, mask=t < tl.where(2 * pair + 1 < B, L, 0))
