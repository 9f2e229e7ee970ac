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

from ..common.strided import Strided, strided
from ..common.triton_tiles import DTYPES, HALF, contiguous, dot_precision, slots_of
from ..launch import launch
from .triton_monarch_passes import (
    monarch_first_kernel,
    monarch_last_kernel,
    monarch_middle_kernel,
    monarch_middle_spectrum_kernel,
)
from .triton_products import Products, gradient_of_inputs, products_of
from .triton_transform import (
    add_products_of_pair,
    apply_spectrum,
    finish_pair,
    frequencies,
    load_pair,
    places,
    times,
    transform,
    transform_back,
)

# Sizes that one kernel transforms without spilling registers: in float32, two of them in float32 (that of a spectrum's
# gradient), and with operands of 16 bits. Rows between two passes: likewise.
ONE_KERNEL_UP_TO, ONE_KERNEL_UP_TO_BACKWARD, ONE_KERNEL_UP_TO_FAST = 1024, 512, 2048
ROWS_UP_TO, ROWS_UP_TO_FAST = 512, 1024
# Numbers of a transform between two passes through memory that are held at a time.
MOST_NUMBERS = 2**28


@triton.jit
def monarch_kernel(
    x,  # Strided [B,D,L]
    spectrum,  # Strided [D,N/2+1,2] float32, N = HEIGHT WIDTH
    d_skip_ptr,  # [D], contiguous, or None
    gate,  # Strided [B,D,L] or None
    products,  # Products or None; with REVERSE their gradient, Strided [B,D,L]
    y,  # Strided [B,D,L]
    B,
    L,
    REVERSE: tl.constexpr,  # time runs backwards, which is the transposed product, and the gate is the input's
    ROWS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes two rows of a channel: they stay on the chip from input to output."""
    pairs = tl.cdiv(B, 2)
    d, pair = (tl.program_id(0) // pairs).to(tl.int64), (tl.program_id(0) % pairs).to(tl.int64)
    t = places(ROWS, WIDTH)
    real, imag = load_pair(x, gate if REVERSE else None, pair, d, t, B, L)
    real, imag = transform(real, imag, ROWS, HEIGHT, WIDTH, OPERAND, PRECISION)
    f = frequencies(0, 1, HEIGHT, WIDTH)
    real, imag = apply_spectrum(real, imag, spectrum, d, f, HEIGHT * WIDTH, WIDTH, REVERSE)
    real, imag = transform_back(real, imag, ROWS, HEIGHT, WIDTH, OPERAND, PRECISION)
    real, imag = add_products_of_pair(real, imag, products, pair, d, t, B, L, REVERSE)
    finish_pair(real, imag, x, d_skip_ptr, gate, y, pair, d, t, B, L, REVERSE)


@triton.jit
def monarch_spectrum_kernel(
    late,  # Strided [B,D,L]
    gate,  # Strided [B,D,L] or None: factors of `late`
    early,  # Strided [B,D,L]
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
    """Each program takes a channel and the pairs of a slot: sum of conj(transform of early) x transform of late."""
    d, slot = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    t = places(ROWS, WIDTH)
    sum_real = tl.zeros([HEIGHT, WIDTH], tl.float32)
    sum_imag = tl.zeros([HEIGHT, WIDTH], tl.float32)
    first = slot * pairs_per_slot
    for pair in range(first, tl.minimum(first + pairs_per_slot, tl.cdiv(B, 2))):
        real, imag = load_pair(early, None, pair, d, t, B, L)
        early_real, early_imag = transform(real, imag, ROWS, HEIGHT, WIDTH, OPERAND, PRECISION)
        real, imag = load_pair(late, gate, pair, d, t, B, L)
        real, imag = transform(real, imag, ROWS, HEIGHT, WIDTH, OPERAND, PRECISION)
        real, imag = times(real, imag, early_real, -early_imag)
        sum_real += real
        sum_imag += imag
    sums = sums_ptr + (slot * D + d) * 2 * HEIGHT * WIDTH + places(HEIGHT, WIDTH)
    tl.store(sums, sum_real)
    tl.store(sums + HEIGHT * WIDTH, sum_imag)


class _Plan:
    """Factors of a transform, and the precision of its products."""

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
        # What lies between two passes: operands of the next product, or what one more factor makes into such.
        self.between = tensors[0].dtype if fast else torch.float32
        self.products = {
            "OPERAND": DTYPES[self.between],
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
    return torch.empty(*leading, D, triton.cdiv(B, 2), 2, plan.outer, plan.inner, dtype=plan.between, device=x.device)


def _first(x: Tensor, gate: Tensor | None, plan: _Plan, rows: Tensor) -> None:
    B, D, L = x.shape
    pairs = triton.cdiv(B, 2)
    block = min(64, max(16, plan.outer))
    launch(
        monarch_first_kernel,
        (D * pairs, plan.inner // 32, triton.cdiv(plan.outer, block)),
        x=strided(x),
        gate=strided(gate),
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
    products: Products | Strided | None,
    rows: Tensor | None = None,
    reverse: bool = False,
) -> None:
    """y = gate (k * x + d x + products), or the transpose of gate (k * x + d x) applied to x plus what the products
    give, which is then all that `products` is; `rows` are those of `_first`, where there are."""
    B, D, L = x.shape
    pairs = triton.cdiv(B, 2)
    ends = {
        "x": strided(x),
        "d_skip_ptr": contiguous(d_skip),
        "gate": strided(gate),
        "products": products,
        "y": strided(y),
        "B": B,
        "L": L,
        "REVERSE": reverse,
    }
    taps = {"spectrum": strided(spectrum)}
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
            late=strided(dy),
            gate=strided(gate),
            early=strided(u),
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


def monarch(
    u: Tensor, spectrum: Tensor, d_skip: Tensor | None, gate: Tensor | None, fast: bool, weights: Tensor | None
) -> Tensor:
    """y [B,D,L] in the dtype of u [B,D,L]; spectrum [D,N/2+1] complex64, d_skip [D], gate [B,D,L], weights [D,P-1]."""
    spectrum = torch.view_as_real(spectrum.resolve_conj())
    return _in_blocks(u, spectrum, d_skip, gate, weights, u.dtype, fast)


def _in_blocks(
    u: Tensor,
    spectrum: Tensor,
    d_skip: Tensor | None,
    gate: Tensor | None,
    weights: Tensor | None,
    dtype: torch.dtype,
    fast: bool,
) -> Tensor:
    y = torch.empty(u.shape, dtype=dtype, device=u.device)
    given = [u, y] if gate is None else [u, y, gate]
    plan = _Plan(spectrum, u.shape[2], fast, *given, one_kernel_up_to=ONE_KERNEL_UP_TO)
    for c in _blocks(u, plan):
        products = products_of(u[:, c], _of(c, weights, 0))
        _convolve(u[:, c], spectrum[c], _of(c, d_skip, 0), _of(c, gate), y[:, c], plan, products)
    return y


def monarch_backward(
    dy: Tensor,
    u: Tensor,
    spectrum: Tensor,
    d_skip: Tensor | None,
    gate: Tensor | None,
    fast: bool,
    weights: Tensor | None,
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
        products = strided(gradient_of_inputs(late, early, _of(c, weights, 0), gated))
        _convolve(late, spectrum[c], _of(c, d_skip, 0), gated, du[:, c], plan, products, of_late, reverse=True)
    dgate = None if gate is None else _in_blocks(u, spectrum, d_skip, dy, weights, gate.dtype, fast)
    return du, torch.cat(parts), dgate
