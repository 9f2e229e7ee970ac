"""The passes of a Monarch FFT whose numbers go through memory, in Triton.

OUTER rows of INNER = HEIGHT x WIDTH numbers: a first transform across them, what happens to each, and the way back.
"""

import triton
import triton.language as tl

from .triton_transform import (
    add_products_of_pair,
    apply_spectrum,
    finish_pair,
    frequencies,
    load_pair,
    places,
    product,
    roots,
    times,
    transform,
    transform_back,
)


@triton.jit
def monarch_first_kernel(
    x,  # Strided [B,D,L]
    gate,  # Strided [B,D,L] or None: factors of x
    rows_ptr,  # [D,pairs,2,OUTER,INNER] float32 or OPERAND, contiguous
    B,
    L,
    OUTER,
    OUTER_STEP,  # 2^32 / OUTER
    STEP,  # 2^32 / (OUTER INNER)
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes ROWS x COLUMNS numbers of two rows of a channel: a transform across OUTER rows, over OUTER."""
    pairs = tl.cdiv(B, 2)
    d, pair = (tl.program_id(0) // pairs).to(tl.int64), (tl.program_id(0) % pairs).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    real = tl.zeros([ROWS, COLUMNS], tl.float32)
    imag = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, tl.cdiv(L, INNER), TERMS):
        n = first + tl.arange(0, TERMS)
        t = n[:, None] * INNER + column[None, :]
        x_real, x_imag = load_pair(x, gate, pair, d, t, B, L)
        root_real, root_imag = roots(k, n, OUTER_STEP)
        part_real, part_imag = product(root_real, root_imag, x_real, x_imag, OPERAND, PRECISION)
        real += part_real
        imag += part_imag
    root_real, root_imag = roots(k, column, STEP)
    real, imag = times(real, imag, root_real / OUTER, root_imag / OUTER)
    row = rows_ptr + tl.program_id(0).to(tl.int64) * 2 * OUTER * INNER + k[:, None] * INNER + column[None, :]
    tl.store(row, real, mask=(k < OUTER)[:, None])
    tl.store(row + OUTER * INNER, imag, mask=(k < OUTER)[:, None])


@triton.jit
def monarch_middle_kernel(
    rows_ptr,  # [D,pairs,2,OUTER,INNER] float32 or OPERAND, contiguous
    spectrum,  # Strided [D,N/2+1,2] float32, N = OUTER INNER
    pairs,
    OUTER,
    CONJUGATE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes one of the OUTER rows, in its place: transform, times the spectrum, back again."""
    pair, k = (tl.program_id(0) // OUTER).to(tl.int64), tl.program_id(0) % OUTER
    row = rows_ptr + (pair * 2 * OUTER + k) * (HEIGHT * WIDTH) + places(HEIGHT, WIDTH)
    real, imag = tl.load(row), tl.load(row + OUTER * HEIGHT * WIDTH)
    real, imag = transform(real, imag, HEIGHT, HEIGHT, WIDTH, OPERAND, PRECISION)
    f = frequencies(k, OUTER, HEIGHT, WIDTH)
    N = OUTER * HEIGHT * WIDTH
    real, imag = apply_spectrum(real, imag, spectrum, pair // pairs, f, N, WIDTH, CONJUGATE)
    real, imag = transform_back(real, imag, HEIGHT, HEIGHT, WIDTH, OPERAND, PRECISION)
    tl.store(row, real)
    tl.store(row + OUTER * HEIGHT * WIDTH, imag)


@triton.jit
def monarch_middle_spectrum_kernel(
    rows_ptr,  # [2,D,pairs,2,OUTER,INNER] float32 or OPERAND, contiguous: of early, of late
    sums_ptr,  # [slots,D,2,OUTER,HEIGHT,WIDTH] float32, contiguous
    pairs,
    D,
    OUTER,
    pairs_per_slot,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes one of the OUTER rows and the pairs of a slot: as `monarch_spectrum_kernel`.

    Early and late take turns in one loop: two transforms side by side would not leave each other enough registers.
    """
    d, k = (tl.program_id(0) // OUTER).to(tl.int64), tl.program_id(0) % OUTER
    slot = tl.program_id(1).to(tl.int64)
    size = OUTER * HEIGHT * WIDTH
    sum_real = tl.zeros([HEIGHT, WIDTH], tl.float32)
    sum_imag = tl.zeros([HEIGHT, WIDTH], tl.float32)
    before_real = tl.zeros([HEIGHT, WIDTH], tl.float32)
    before_imag = tl.zeros([HEIGHT, WIDTH], tl.float32)
    first = slot * pairs_per_slot
    for turn in range(2 * first, 2 * tl.minimum(first + pairs_per_slot, pairs)):
        pair, late = turn // 2, turn % 2
        row = rows_ptr + (((late * D + d) * pairs + pair) * 2 * OUTER + k) * (HEIGHT * WIDTH) + places(HEIGHT, WIDTH)
        real, imag = tl.load(row), tl.load(row + size)
        real, imag = transform(real, imag, HEIGHT, HEIGHT, WIDTH, OPERAND, PRECISION)
        both_real, both_imag = times(real, imag, before_real, -before_imag)
        sum_real += both_real * late
        sum_imag += both_imag * late
        before_real, before_imag = real, imag
    sums = sums_ptr + ((slot * D + d) * 2 * OUTER + k) * (HEIGHT * WIDTH) + places(HEIGHT, WIDTH)
    tl.store(sums, sum_real)
    tl.store(sums + size, sum_imag)


@triton.jit
def monarch_last_kernel(
    rows_ptr,  # [D,pairs,2,OUTER,INNER] float32 or OPERAND, contiguous
    x,  # Strided [B,D,L]
    d_skip_ptr,  # [D], contiguous, or None
    gate,  # Strided [B,D,L] or None
    products,  # Products or None; with REVERSE their gradient, Strided [B,D,L]
    y,  # Strided [B,D,L]
    B,
    L,
    OUTER,
    OUTER_STEP,
    STEP,
    REVERSE: tl.constexpr,  # as in `monarch_kernel`
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TERMS: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes ROWS x COLUMNS numbers of two rows of a channel: back across OUTER rows; `finish_pair`."""
    pairs = tl.cdiv(B, 2)
    d, pair = (tl.program_id(0) // pairs).to(tl.int64), (tl.program_id(0) % pairs).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    n = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    real = tl.zeros([ROWS, COLUMNS], tl.float32)
    imag = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, OUTER, TERMS):
        k = first + tl.arange(0, TERMS)
        row = rows_ptr + tl.program_id(0).to(tl.int64) * 2 * OUTER * INNER + k[:, None] * INNER + column[None, :]
        row_real = tl.load(row, mask=(k < OUTER)[:, None], other=0.0)
        row_imag = tl.load(row + OUTER * INNER, mask=(k < OUTER)[:, None], other=0.0)
        root_real, root_imag = roots(k, column, STEP)
        row_real, row_imag = times(row_real, row_imag, root_real, -root_imag)
        root_real, root_imag = roots(n, k, OUTER_STEP)
        part_real, part_imag = product(root_real, -root_imag, row_real, row_imag, OPERAND, PRECISION)
        real += part_real
        imag += part_imag
    t = n[:, None] * INNER + column[None, :]
    real, imag = add_products_of_pair(real, imag, products, pair, d, t, B, L, REVERSE)
    finish_pair(real, imag, x, d_skip_ptr, gate, y, pair, d, t, B, L, REVERSE)
