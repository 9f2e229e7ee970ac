"""Causal convolution by a Monarch FFT in Triton: transforms of a power of two as products with small Fourier matrices.

Two rows of the batch are the real and the imaginary part of one complex row: the taps are real, so that their
convolutions are those of the result. A row of HEIGHT x WIDTH numbers, n = WIDTH i + j, is transformed down its columns
(a product from the left), turned by exp(-2 pi i k j / N), and transformed along its rows (a product from the right):
the number at [k, m] is then that of frequency k + HEIGHT m.

    up to the size of one kernel    transform, times the spectrum, back again: nothing in between leaves the chip
    beyond                          OUTER such rows: a first transform across them, what one kernel does to each of
                                    them, and the way back: the numbers pass through memory twice

Half of a row is zeros, or not wanted: the first and the last product leave it out. The steps of scale, 1/N in all, lie
where they keep the numbers before every rounding to 16 bits no larger than those of the input or the output.

Error against float64, rms of the output, in Triton's interpreter with products taken apart as a GPU does, L = 500 to
8000: 2e-7 in bf16x6 and 3e-7 in float32 (torch.fft: 3e-7), 6e-6 to 8e-6 in bf16x3, 4e-3 to 5e-3 of bfloat16 operands,
5e-4 to 6e-4 of float16 ones.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.launch import launch
from ..common.triton_angles import sine_and_cosine
from ..common.triton_tiles import HALF, contiguous, dot, dot_precision, slots_of, strides

# Sizes that one kernel transforms without spilling registers: in float32, two of them in float32 (that of a spectrum's
# gradient), and with operands of 16 bits. Rows between two passes: likewise.
ONE_KERNEL_UP_TO, ONE_KERNEL_UP_TO_BACKWARD, ONE_KERNEL_UP_TO_FAST = 1024, 512, 2048
ROWS_UP_TO, ROWS_UP_TO_FAST = 512, 1024
# Numbers of a transform between two passes through memory that are held at a time.
MOST_NUMBERS = 2**28

DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def _roots(a, b, STEP):
    """exp(-2 pi i a b / N), real and imaginary part [a, b], for STEP = 2^32 / N: whole steps wrap around at a turn."""
    sine, cosine = sine_and_cosine((a[:, None] * b[None, :]).to(tl.uint32) * STEP, 0.0)
    return cosine, -sine


@triton.jit
def _times(a_real, a_imag, b_real, b_imag):
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real


@triton.jit
def _product(a_real, a_imag, b_real, b_imag, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    """Of complex matrices, by four products of real ones."""
    a_real, a_imag, b_real, b_imag = a_real.to(OPERAND), a_imag.to(OPERAND), b_real.to(OPERAND), b_imag.to(OPERAND)
    real = dot(a_real, b_real, PRECISION) - dot(a_imag, b_imag, PRECISION)
    return real, dot(a_real, b_imag, PRECISION) + dot(a_imag, b_real, PRECISION)


@triton.jit
def _transform(
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
    root_real, root_imag = _roots(k, tl.arange(0, ROWS), 2**32 // HEIGHT)
    real, imag = _product(root_real, root_imag, real, imag, OPERAND, PRECISION)
    root_real, root_imag = _roots(k, m, 2**32 // (HEIGHT * WIDTH))
    real, imag = _times(real, imag, root_real / HEIGHT, root_imag / HEIGHT)
    root_real, root_imag = _roots(m, m, 2**32 // WIDTH)
    return _product(real, imag, root_real, root_imag, OPERAND, PRECISION)


@triton.jit
def _transform_back(
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
    root_real, root_imag = _roots(m, m, 2**32 // WIDTH)
    real, imag = _product(real, imag, root_real, -root_imag, OPERAND, PRECISION)
    root_real, root_imag = _roots(k, m, 2**32 // (HEIGHT * WIDTH))
    real, imag = _times(real, imag, root_real, -root_imag)
    root_real, root_imag = _roots(tl.arange(0, ROWS), k, 2**32 // HEIGHT)
    return _product(root_real, -root_imag, real, imag, OPERAND, PRECISION)


@triton.jit
def _places(HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Where the numbers of a row lie, [HEIGHT, WIDTH]."""
    return tl.arange(0, HEIGHT)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _frequencies(first, every, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Of the numbers of a transform: first + every (k + HEIGHT m), [HEIGHT, WIDTH]."""
    return first + every * (tl.arange(0, HEIGHT)[:, None] + HEIGHT * tl.arange(0, WIDTH)[None, :])


@triton.jit
def _filtered(real, imag, spectrum_ptr, spectrum_strides, d, f, N, WIDTH: tl.constexpr, CONJUGATE: tl.constexpr):
    """Times the taps' spectrum at f, of which half is kept, or times its conjugate; divided by WIDTH."""
    half = f * 2 > N
    spectrum = spectrum_ptr + d * spectrum_strides[0] + tl.where(half, N - f, f).to(tl.int64) * spectrum_strides[1]
    of_taps_real, of_taps_imag = tl.load(spectrum), tl.load(spectrum + spectrum_strides[2])
    if CONJUGATE:
        of_taps_imag = tl.where(half, of_taps_imag, -of_taps_imag)
    else:
        of_taps_imag = tl.where(half, -of_taps_imag, of_taps_imag)
    return _times(real, imag, of_taps_real / WIDTH, of_taps_imag / WIDTH)


@triton.jit
def _load_pair(x_ptr, x_strides, gate_ptr, gate_strides, pair, d, t, B, L):
    """Steps t of rows 2 pair and 2 pair + 1, in float32 times the gate, or as they are; 0 where there is none."""
    first, second = t < L, t < tl.where(2 * pair + 1 < B, L, 0)
    x = x_ptr + 2 * pair * x_strides[0] + d * x_strides[1] + t.to(tl.int64) * x_strides[2]
    real, imag = tl.load(x, mask=first, other=0.0), tl.load(x + x_strides[0], mask=second, other=0.0)
    if gate_ptr is not None:
        gate = gate_ptr + 2 * pair * gate_strides[0] + d * gate_strides[1] + t.to(tl.int64) * gate_strides[2]
        real = real.to(tl.float32) * tl.load(gate, mask=first, other=0.0).to(tl.float32)
        imag = imag.to(tl.float32) * tl.load(gate + gate_strides[0], mask=second, other=0.0).to(tl.float32)
    return real, imag


@triton.jit
def _finish(
    real,
    imag,
    x_ptr,
    x_strides,
    d_skip_ptr,
    gate_ptr,
    gate_strides,
    y_ptr,
    y_strides,
    pair,
    d,
    t,
    B,
    L,
    REVERSE: tl.constexpr,
):
    """Add the skip, gate the output (where time runs forward) and store both rows."""
    if d_skip_ptr is not None:
        x_gate_ptr = gate_ptr if REVERSE else None
        x_real, x_imag = _load_pair(x_ptr, x_strides, x_gate_ptr, gate_strides, pair, d, t, B, L)
        d_skip = tl.load(d_skip_ptr + d).to(tl.float32)
        real += d_skip * x_real.to(tl.float32)
        imag += d_skip * x_imag.to(tl.float32)
    if gate_ptr is not None and not REVERSE:
        gate_real, gate_imag = _load_pair(gate_ptr, gate_strides, None, None, pair, d, t, B, L)
        real *= gate_real.to(tl.float32)
        imag *= gate_imag.to(tl.float32)
    y = y_ptr + 2 * pair * y_strides[0] + d * y_strides[1] + t.to(tl.int64) * y_strides[2]
    tl.store(y, real, mask=t < L)
    tl.store(y + y_strides[0], imag, mask=t < tl.where(2 * pair + 1 < B, L, 0))


@triton.jit
def monarch_kernel(
    x_ptr,  # [B,D,L]
    x_strides,
    spectrum_ptr,  # [D,N/2+1,2] float32, N = HEIGHT WIDTH
    spectrum_strides,
    d_skip_ptr,  # [D], contiguous, or None
    gate_ptr,  # [B,D,L] or None
    gate_strides,
    y_ptr,  # [B,D,L]
    y_strides,
    B,
    L,
    REVERSE: tl.constexpr,  # time runs backwards, which is the transposed product, and the gate is the input's
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program two rows of a channel: they stay on the chip from input to output."""
    pairs = tl.cdiv(B, 2)
    d, pair = (tl.program_id(0) // pairs).to(tl.int64), (tl.program_id(0) % pairs).to(tl.int64)
    t = _places(ROWS, WIDTH)
    real, imag = _load_pair(x_ptr, x_strides, gate_ptr if REVERSE else None, gate_strides, pair, d, t, B, L)
    real, imag = _transform(real, imag, ROWS, HEIGHT, WIDTH, OPERAND, PRECISION)
    f = _frequencies(0, 1, HEIGHT, WIDTH)
    real, imag = _filtered(real, imag, spectrum_ptr, spectrum_strides, d, f, HEIGHT * WIDTH, WIDTH, REVERSE)
    real, imag = _transform_back(real, imag, ROWS, HEIGHT, WIDTH, OPERAND, PRECISION)
    _finish(
        real, imag, x_ptr, x_strides, d_skip_ptr, gate_ptr, gate_strides, y_ptr, y_strides, pair, d, t, B, L, REVERSE
    )  # fmt: skip


@triton.jit
def monarch_spectrum_kernel(
    late_ptr,  # [B,D,L]
    late_strides,
    gate_ptr,  # [B,D,L] or None: factors of `late`
    gate_strides,
    early_ptr,  # [B,D,L]
    early_strides,
    sums_ptr,  # [slots,D,2,HEIGHT,WIDTH] float32, contiguous
    B,
    L,
    D,
    pairs_per_slot,
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program a channel and the pairs of a slot: sum of conj(transform of early) times the transform of late."""
    d, slot = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    t = _places(ROWS, WIDTH)
    sum_real = tl.zeros([HEIGHT, WIDTH], tl.float32)
    sum_imag = tl.zeros([HEIGHT, WIDTH], tl.float32)
    first = slot * pairs_per_slot
    for pair in range(first, tl.minimum(first + pairs_per_slot, tl.cdiv(B, 2))):
        real, imag = _load_pair(early_ptr, early_strides, None, None, pair, d, t, B, L)
        early_real, early_imag = _transform(real, imag, ROWS, HEIGHT, WIDTH, OPERAND, PRECISION)
        real, imag = _load_pair(late_ptr, late_strides, gate_ptr, gate_strides, pair, d, t, B, L)
        real, imag = _transform(real, imag, ROWS, HEIGHT, WIDTH, OPERAND, PRECISION)
        real, imag = _times(real, imag, early_real, -early_imag)
        sum_real += real
        sum_imag += imag
    sums = sums_ptr + (slot * D + d) * 2 * HEIGHT * WIDTH + _places(HEIGHT, WIDTH)
    tl.store(sums, sum_real)
    tl.store(sums + HEIGHT * WIDTH, sum_imag)


@triton.jit
def monarch_first_kernel(
    x_ptr,  # [B,D,L]
    x_strides,
    gate_ptr,  # [B,D,L] or None: factors of x
    gate_strides,
    rows_ptr,  # [D,pairs,2,OUTER,INNER] float32, contiguous
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
    """A program ROWS x COLUMNS numbers of two rows of a channel: the transform across OUTER rows, divided by OUTER."""
    pairs = tl.cdiv(B, 2)
    d, pair = (tl.program_id(0) // pairs).to(tl.int64), (tl.program_id(0) % pairs).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    real = tl.zeros([ROWS, COLUMNS], tl.float32)
    imag = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, tl.cdiv(L, INNER), TERMS):
        n = first + tl.arange(0, TERMS)
        t = n[:, None] * INNER + column[None, :]
        x_real, x_imag = _load_pair(x_ptr, x_strides, gate_ptr, gate_strides, pair, d, t, B, L)
        root_real, root_imag = _roots(k, n, OUTER_STEP)
        part_real, part_imag = _product(root_real, root_imag, x_real, x_imag, OPERAND, PRECISION)
        real += part_real
        imag += part_imag
    root_real, root_imag = _roots(k, column, STEP)
    real, imag = _times(real, imag, root_real / OUTER, root_imag / OUTER)
    row = rows_ptr + tl.program_id(0).to(tl.int64) * 2 * OUTER * INNER + k[:, None] * INNER + column[None, :]
    tl.store(row, real, mask=(k < OUTER)[:, None])
    tl.store(row + OUTER * INNER, imag, mask=(k < OUTER)[:, None])


@triton.jit
def monarch_middle_kernel(
    rows_ptr,  # [D,pairs,2,OUTER,INNER] float32, contiguous
    spectrum_ptr,  # [D,N/2+1,2] float32, N = OUTER INNER
    spectrum_strides,
    pairs,
    OUTER,
    CONJUGATE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program one of the OUTER rows, in its place: transform, times the spectrum, back again."""
    pair, k = (tl.program_id(0) // OUTER).to(tl.int64), tl.program_id(0) % OUTER
    row = rows_ptr + (pair * 2 * OUTER + k) * (HEIGHT * WIDTH) + _places(HEIGHT, WIDTH)
    real, imag = tl.load(row), tl.load(row + OUTER * HEIGHT * WIDTH)
    real, imag = _transform(real, imag, HEIGHT, HEIGHT, WIDTH, OPERAND, PRECISION)
    f = _frequencies(k, OUTER, HEIGHT, WIDTH)
    N = OUTER * HEIGHT * WIDTH
    real, imag = _filtered(real, imag, spectrum_ptr, spectrum_strides, pair // pairs, f, N, WIDTH, CONJUGATE)
    real, imag = _transform_back(real, imag, HEIGHT, HEIGHT, WIDTH, OPERAND, PRECISION)
    tl.store(row, real)
    tl.store(row + OUTER * HEIGHT * WIDTH, imag)


@triton.jit
def monarch_middle_spectrum_kernel(
    rows_ptr,  # [2,D,pairs,2,OUTER,INNER] float32, contiguous: of early, of late
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
    """A program one of the OUTER rows and the pairs of a slot: as `monarch_spectrum_kernel`.

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
        row = rows_ptr + (((late * D + d) * pairs + pair) * 2 * OUTER + k) * (HEIGHT * WIDTH) + _places(HEIGHT, WIDTH)
        real, imag = _transform(
            tl.load(row), tl.load(row + size), HEIGHT, HEIGHT, WIDTH, OPERAND, PRECISION
        )  # fmt: skip
        both_real, both_imag = _times(real, imag, before_real, -before_imag)
        sum_real += both_real * late
        sum_imag += both_imag * late
        before_real, before_imag = real, imag
    sums = sums_ptr + ((slot * D + d) * 2 * OUTER + k) * (HEIGHT * WIDTH) + _places(HEIGHT, WIDTH)
    tl.store(sums, sum_real)
    tl.store(sums + size, sum_imag)


@triton.jit
def monarch_last_kernel(
    rows_ptr,  # [D,pairs,2,OUTER,INNER] float32, contiguous
    x_ptr,  # [B,D,L]
    x_strides,
    d_skip_ptr,  # [D], contiguous, or None
    gate_ptr,  # [B,D,L] or None
    gate_strides,
    y_ptr,  # [B,D,L]
    y_strides,
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
    """A program ROWS x COLUMNS numbers of two rows of a channel: back across OUTER rows, then what `_finish` does."""
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
        root_real, root_imag = _roots(k, column, STEP)
        row_real, row_imag = _times(row_real, row_imag, root_real, -root_imag)
        root_real, root_imag = _roots(n, k, OUTER_STEP)
        part_real, part_imag = _product(root_real, -root_imag, row_real, row_imag, OPERAND, PRECISION)
        real += part_real
        imag += part_imag
    t = n[:, None] * INNER + column[None, :]
    _finish(
        real, imag, x_ptr, x_strides, d_skip_ptr, gate_ptr, gate_strides, y_ptr, y_strides, pair, d, t, B, L, REVERSE
    )  # fmt: skip


class _Plan:
    """How a transform is taken apart, and at what precision its products are."""

    def __init__(self, spectrum: Tensor, L: int, fast: bool, *tensors: Tensor, one_kernel_up_to: int):
        self.size = 2 * (spectrum.shape[1] - 1)
        fast = fast and tensors[0].dtype in HALF
        self.one_kernel = self.size <= (ONE_KERNEL_UP_TO_FAST if fast else one_kernel_up_to)
        inner = min(ROWS_UP_TO_FAST if fast else ROWS_UP_TO, max(256, self.size // 16))
        inner = self.size if self.one_kernel else inner
        self.outer = self.size // inner
        width = 32 if inner >= 1024 else 16
        height = inner // width
        self.tile = {"HEIGHT": height, "WIDTH": width}
        self.rows = height // 2 if self.size >= 2 * L else height
        self.products = {
            "OPERAND": DTYPES[tensors[0].dtype] if fast else tl.float32,
            "PRECISION": dot_precision(monarch_kernel, *tensors),
        }
        self.across = {
            "OUTER": self.outer,
            "OUTER_STEP": 2**32 // self.outer,
            "STEP": 2**32 // self.size,
            "INNER": inner,
        }
        self.inner = inner


def _empty_rows(x: Tensor, plan: _Plan, *leading: int) -> Tensor:
    B, D, _ = x.shape
    return torch.empty(*leading, D, triton.cdiv(B, 2), 2, plan.outer, plan.inner, dtype=torch.float32, device=x.device)


def _first(x: Tensor, gate: Tensor | None, plan: _Plan, rows: Tensor) -> None:
    B, D, L = x.shape
    pairs = triton.cdiv(B, 2)
    block = min(64, max(16, plan.outer))
    launch(
        monarch_first_kernel,
        (D * pairs, plan.inner // 32, triton.cdiv(plan.outer, block)),
        x_ptr=x,
        x_strides=x.stride(),
        gate_ptr=gate,
        gate_strides=strides(gate),
        rows_ptr=rows,
        B=B,
        L=L,
        ROWS=block,
        COLUMNS=32,
        TERMS=16,
        num_warps=4,
        num_stages=1,
        **plan.across,
        **plan.products,
    )


def _convolve(
    x: Tensor,
    spectrum: Tensor,
    d_skip: Tensor | None,
    gate: Tensor | None,
    y: Tensor,
    plan: _Plan,
    rows: Tensor | None = None,
    reverse: bool = False,
) -> None:
    """y = gate (k * x + d x), or the transpose of this applied to x; `rows` are those of `_first`, where there are."""
    B, D, L = x.shape
    pairs = triton.cdiv(B, 2)
    ends = {
        "x_ptr": x,
        "x_strides": x.stride(),
        "d_skip_ptr": contiguous(d_skip),
        "gate_ptr": gate,
        "gate_strides": strides(gate),
        "y_ptr": y,
        "y_strides": y.stride(),
        "B": B,
        "L": L,
        "REVERSE": reverse,
    }
    taps = {"spectrum_ptr": spectrum, "spectrum_strides": spectrum.stride()}
    if plan.one_kernel:
        launch(
            monarch_kernel,
            (D * pairs,),
            ROWS=plan.rows,
            num_warps=4,
            num_stages=1,
            **ends,
            **taps,
            **plan.tile,
            **plan.products,
        )
        return
    if rows is None:
        rows = _empty_rows(x, plan)
        _first(x, gate if reverse else None, plan, rows)
    launch(
        monarch_middle_kernel,
        (D * pairs * plan.outer,),
        rows_ptr=rows,
        pairs=pairs,
        OUTER=plan.outer,
        CONJUGATE=reverse,
        num_warps=4,
        num_stages=1,
        **taps,
        **plan.tile,
        **plan.products,
    )
    needed = triton.cdiv(L, plan.inner)
    block = min(64, max(16, triton.next_power_of_2(needed)))
    launch(
        monarch_last_kernel,
        (D * pairs, plan.inner // 32, triton.cdiv(needed, block)),
        rows_ptr=rows,
        ROWS=block,
        COLUMNS=32,
        TERMS=16,
        num_warps=4,
        num_stages=1,
        **ends,
        **plan.across,
        **plan.products,
    )


def _of_spectrum(dy: Tensor, u: Tensor, gate: Tensor | None, plan: _Plan, rows: Tensor | None) -> Tensor:
    """The gradient [D,N/2+1] of the kept half of the taps' spectrum; `rows` are those of u and dy, where there are."""
    B, D, L = u.shape
    pairs = triton.cdiv(B, 2)
    slots, pairs_per_slot = slots_of(pairs, D * plan.outer)
    height, width = plan.tile.values()
    sums = torch.empty(slots, D, 2, plan.outer, height, width, dtype=torch.float32, device=u.device)
    shared = {"sums_ptr": sums, "D": D, "pairs_per_slot": pairs_per_slot, **plan.tile, **plan.products}
    if plan.one_kernel:
        launch(
            monarch_spectrum_kernel,
            (D, slots),
            late_ptr=dy,
            late_strides=dy.stride(),
            gate_ptr=gate,
            gate_strides=strides(gate),
            early_ptr=u,
            early_strides=u.stride(),
            B=B,
            L=L,
            ROWS=plan.rows,
            num_warps=4,
            num_stages=1,
            **shared,
        )
    else:
        launch(
            monarch_middle_spectrum_kernel,
            (D * plan.outer, slots),
            rows_ptr=rows,
            pairs=pairs,
            OUTER=plan.outer,
            num_warps=4,
            num_stages=1,
            **shared,
        )
    # From [outer, height, width] to frequencies outer + OUTER (height + HEIGHT width).
    sums = sums.sum(0).permute(0, 4, 3, 2, 1).reshape(D, plan.size, 2)
    product = torch.view_as_complex(sums * ((plan.outer * height) ** 2 / plan.size))
    # What the two rows of a pair make with each other is odd, and falls out with the mirror image.
    half = plan.size // 2
    mirrored = torch.cat([product[:, :1], product[:, half:].flip(1)], 1)
    gradient = product[:, : half + 1] + mirrored.conj()
    gradient[:, 0] *= 0.5
    gradient[:, half] *= 0.5
    return gradient


def _blocks(u: Tensor, plan: _Plan) -> list[slice]:
    """Slices that cover the channels, of so many that what lies between two passes has few enough numbers."""
    step = max(1, MOST_NUMBERS // (u.shape[0] * plan.size))
    return [slice(start, start + step) for start in range(0, u.shape[1], step)]


def _of(channels: slice, tensor: Tensor | None, axis: int = 1) -> Tensor | None:
    if tensor is None:
        return None
    return tensor[channels] if axis == 0 else tensor[:, channels]


def monarch(u: Tensor, spectrum: Tensor, d_skip: Tensor | None, gate: Tensor | None, fast: bool) -> Tensor:
    """y [B,D,L] in the dtype of u [B,D,L]; spectrum [D,N/2+1] complex64, d_skip [D], gate [B,D,L]."""
    spectrum = torch.view_as_real(spectrum.resolve_conj())
    return _in_blocks(u, spectrum, d_skip, gate, u.dtype, fast)


def _in_blocks(
    u: Tensor, spectrum: Tensor, d_skip: Tensor | None, gate: Tensor | None, dtype: torch.dtype, fast: bool
) -> Tensor:
    y = torch.empty(u.shape, dtype=dtype, device=u.device)
    given = [u, y] if gate is None else [u, y, gate]
    plan = _Plan(spectrum, u.shape[2], fast, *given, one_kernel_up_to=ONE_KERNEL_UP_TO)
    for c in _blocks(u, plan):
        _convolve(u[:, c], spectrum[c], _of(c, d_skip, 0), _of(c, gate), y[:, c], plan)
    return y


def monarch_backward(
    dy: Tensor, u: Tensor, spectrum: Tensor, d_skip: Tensor | None, gate: Tensor | None, fast: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """du, the gradient of the spectrum, and that of the gate where there is one."""
    spectrum = torch.view_as_real(spectrum.resolve_conj())
    du = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    # The spectrum is of float32, whatever u is, and so its gradient has to be.
    plan = _Plan(spectrum, u.shape[2], fast, u, spectrum, one_kernel_up_to=ONE_KERNEL_UP_TO_BACKWARD)
    parts = []
    for c in _blocks(u, plan):
        late, early, gated = dy[:, c], u[:, c], _of(c, gate)
        rows = of_late = None
        if not plan.one_kernel:
            rows = _empty_rows(early, plan, 2)
            of_late = rows[1]
            _first(early, None, plan, rows[0])
            _first(late, gated, plan, of_late)
        parts.append(_of_spectrum(late, early, gated, plan, rows))
        _convolve(late, spectrum[c], _of(c, d_skip, 0), gated, du[:, c], plan, of_late, reverse=True)
    dgate = None if gate is None else _in_blocks(u, spectrum, d_skip, dy, gate.dtype, fast)
    return du, torch.cat(parts), dgate
