"""Vandermonde products over conjugate pairs in Triton, a complex number as two real ones.

D channels of N modes, L taps, of which a block has ROWS x WIDTH. A last axis of 2 has real and imaginary part.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_angles import sine_and_cosine
from ..common.triton_tiles import block_of, dot, dot_precision, parts_of, slots_of
from ..configurations import configured
from ..launch import launch

# Modes at a time.
MOST_MODES = 32

_TURNS = tl.constexpr(1 / (2 * math.pi))
_STEPS = tl.constexpr(2.0**32)


@triton.jit
def _logarithms(log_z, d, n, N):
    """Load logarithms of modes n: real part, and the angle a step in 2^-32 turns, whole and rest.

    Times l the whole steps wrap around at one turn, exactly, and the rest is small: the angle of z^l loses nothing to
    the length. In float64, as it is of N numbers.
    """
    real = load(log_z, (d, n, 0), mask=n < N)
    turns = load(log_z, (d, n, 1), mask=n < N).to(tl.float64) * _TURNS
    steps = (turns - tl.floor(turns)) * _STEPS
    whole = tl.floor(steps)
    return real, whole.to(tl.int64).to(tl.uint32), (steps - whole).to(tl.float32)


@triton.jit
def _powers(log_size, steps, rest, l):
    """Real and imaginary part of z^l."""
    size = tl.exp(log_size * l.to(tl.float32))
    sine, cosine = sine_and_cosine(steps * l.to(tl.uint32), rest * l.to(tl.float32))
    return size * cosine, size * sine


@triton.jit(do_not_specialize=["L"])
def vandermonde_kernel(
    c,  # Strided [D,N,2]
    log_z,  # Strided [D,N,2]
    K_ptr,  # [D,L], contiguous
    L,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes ROWS x WIDTH taps of a channel: z^l = z^(WIDTH i) z^j, l = WIDTH i + j, as two real products.

    Error against float64 in Triton's interpreter, of the largest entry, N = 32 and L = 64 to 2048, gradients too:
    1 to 3e-7. The plain formula in float32 has the same at up to 0.006 radians a step, but 5e-6 to 1e-4 at up to 6.
    """
    blocks = tl.cdiv(L, ROWS * WIDTH)
    d = (tl.program_id(0) // blocks).to(tl.int64)
    row = ((tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)) * WIDTH
    column = tl.arange(0, WIDTH)
    K = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, N, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        c_real = 2 * load(c, (d, n, 0), mask=n < N)[None, :]
        c_imag = 2 * load(c, (d, n, 1), mask=n < N)[None, :]
        log_size, steps, rest = _logarithms(log_z, d, n, N)
        row_real, row_imag = _powers(log_size[None, :], steps[None, :], rest[None, :], row[:, None])  # [ROWS, BLOCK_N]
        real, imag = _powers(log_size[:, None], steps[:, None], rest[:, None], column[None, :])  # [BLOCK_N, WIDTH]
        K += dot(c_real * row_real - c_imag * row_imag, real, PRECISION)
        K -= dot(c_real * row_imag + c_imag * row_real, imag, PRECISION)
    l = row[:, None] + column[None, :]
    tl.store(K_ptr + d * L + l, K, mask=l < L)


@triton.jit(do_not_specialize=["L", "slots", "blocks_per_slot"])
def vandermonde_backward_kernel(
    dK,  # Strided [D,L]
    c,  # Strided [D,N,2]
    log_z,  # Strided [D,N,2]
    partials_ptr,  # [2,slots,D,N,2], contiguous: of c, of log_z
    D,
    L,
    slots,
    blocks_per_slot,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each program takes BLOCK_N modes of a channel and the taps of a slot, ROWS x WIDTH of them at a time.

    dc = 2 conj(sum_l dK_l z^l) and dlog_z = 2 conj(c sum_l l dK_l z^l): products with z^j, then sums with z^(WIDTH i).
    """
    d, slot = (tl.program_id(0) // slots).to(tl.int64), tl.program_id(0) % slots
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, WIDTH)
    log_size, steps, rest = _logarithms(log_z, d, n, N)
    log_size, steps, rest = log_size[None, :], steps[None, :], rest[None, :]
    # Growing modes overflow beyond the last tap, where dK is 0.
    real, imag = _powers(log_size, steps, rest, tl.minimum(column, L - 1)[:, None])  # [WIDTH, BLOCK_N]
    sum_real = tl.zeros([ROWS, BLOCK_N], tl.float32)
    sum_imag = tl.zeros([ROWS, BLOCK_N], tl.float32)
    lag_real = tl.zeros([ROWS, BLOCK_N], tl.float32)
    lag_imag = tl.zeros([ROWS, BLOCK_N], tl.float32)
    first = slot * blocks_per_slot
    for block in range(first, tl.minimum(first + blocks_per_slot, tl.cdiv(L, ROWS * WIDTH))):
        row = (block * ROWS + tl.arange(0, ROWS)) * WIDTH
        l = (row[:, None] + column[None, :]).to(tl.int64)
        tile = load(dK, (d, l), mask=l < L)
        late = tile * column.to(tl.float32)[None, :]
        x_real, x_imag = dot(tile, real, PRECISION), dot(tile, imag, PRECISION)  # [ROWS, BLOCK_N]
        lag = row.to(tl.float32)[:, None]
        y_real, y_imag = lag * x_real + dot(late, real, PRECISION), lag * x_imag + dot(late, imag, PRECISION)
        row_real, row_imag = _powers(log_size, steps, rest, tl.minimum(row, L - 1)[:, None])
        sum_real += row_real * x_real - row_imag * x_imag
        sum_imag += row_real * x_imag + row_imag * x_real
        lag_real += row_real * y_real - row_imag * y_imag
        lag_imag += row_real * y_imag + row_imag * y_real
    c_real, c_imag = load(c, (d, n, 0), mask=n < N), load(c, (d, n, 1), mask=n < N)
    y_real, y_imag = tl.sum(lag_real, 0), tl.sum(lag_imag, 0)
    slot = slot.to(tl.int64)
    of_c = partials_ptr + ((slot * D + d) * N + n) * 2
    of_log_z = partials_ptr + (((slots + slot) * D + d) * N + n) * 2
    tl.store(of_c, 2 * tl.sum(sum_real, 0), mask=n < N)
    tl.store(of_c + 1, -2 * tl.sum(sum_imag, 0), mask=n < N)
    tl.store(of_log_z, 2 * (c_real * y_real - c_imag * y_imag), mask=n < N)
    tl.store(of_log_z + 1, -2 * (c_real * y_imag + c_imag * y_real), mask=n < N)


def _forward_tiles(L: int, N: int) -> dict[str, int]:
    """Tiles that a warp or two get through: with more of them each would make the same powers again."""
    if L <= 256:
        return {"ROWS": 16, "WIDTH": 16, "num_warps": 1}
    if L <= 512 or N > MOST_MODES:  # a loop over modes holds no more rows without spilling
        return {"ROWS": 16, "WIDTH": 32, "num_warps": 1}
    return {"ROWS": 32, "WIDTH": 32, "num_warps": 2}


def _backward_tiles(L: int, N: int) -> dict[str, int]:
    """Tiles beside which four sums are held without spilling."""
    width = 16 if L <= 512 else 32
    return {"BLOCK_N": min(MOST_MODES, block_of(N)), "ROWS": 16, "WIDTH": width, "num_warps": 2}


def vandermonde(c: Tensor, log_z: Tensor, L: int) -> Tensor:
    """K [D,L] float32 of c, log_z [D,N] complex64."""
    D, N = c.shape
    c, log_z = parts_of(c), parts_of(log_z)
    K = torch.empty(D, L, dtype=torch.float32, device=c.device)
    tiles = configured(vandermonde_kernel, K, {"L": L, "N": N}, _forward_tiles(L, N))
    launch(
        vandermonde_kernel,
        (D * triton.cdiv(L, tiles["ROWS"] * tiles["WIDTH"]),),
        c=strided(c),
        log_z=strided(log_z),
        K_ptr=K,
        L=L,
        N=N,
        BLOCK_N=min(MOST_MODES, block_of(N)),
        PRECISION=dot_precision(vandermonde_kernel, c),
        **tiles,
    )
    return K


def vandermonde_backward(dK: Tensor, c: Tensor, log_z: Tensor) -> tuple[Tensor, Tensor]:
    """dc and dlog_z [D,N] complex64."""
    (D, N), L = c.shape, dK.shape[1]
    c, log_z = parts_of(c), parts_of(log_z)
    tiles = configured(vandermonde_backward_kernel, dK, {"L": L, "N": N}, _backward_tiles(L, N))
    parts = triton.cdiv(N, tiles["BLOCK_N"])
    slots, blocks_per_slot = slots_of(triton.cdiv(L, tiles["ROWS"] * tiles["WIDTH"]), D * parts)
    partials = torch.empty(2, slots, D, N, 2, dtype=torch.float32, device=c.device)
    launch(
        vandermonde_backward_kernel,
        (D * slots, parts),
        dK=strided(dK),
        c=strided(c),
        log_z=strided(log_z),
        partials_ptr=partials,
        D=D,
        L=L,
        slots=slots,
        blocks_per_slot=blocks_per_slot,
        N=N,
        PRECISION=dot_precision(vandermonde_backward_kernel, dK),
        **tiles,
    )
    dc, dlog_z = (torch.view_as_complex(partial.sum(0)) for partial in partials)
    return dc, dlog_z
