"""Vandermonde and Cauchy products over conjugate pairs in Triton, a complex number as two real ones."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.triton_angles import sine_and_cosine
from ..common.triton_tiles import block_of, dot, dot_precision, slots_of
from ..launch import launch

# Modes or poles at a time.
MOST_MODES = 32
# Cauchy: rows over the same poles that are summed together, and terms that are added up one by one.
MOST_ROWS = 4
SUMMED_AT_ONCE = 8

_TURNS = tl.constexpr(1 / (2 * math.pi))
_STEPS = tl.constexpr(2.0**32)


@triton.jit
def _logarithms(log_z_ptr, log_z_strides, d, n, N):
    """Of modes n: real part, and the angle a step in 2^-32 turns, whole and rest.

    Times l the whole steps wrap around at one turn, exactly, and the rest is small: the angle of z^l loses nothing to
    the length. In float64, as it is of N numbers.
    """
    z = log_z_ptr + d * log_z_strides[0] + n * log_z_strides[1]
    real = tl.load(z, mask=n < N, other=0.0)
    turns = tl.load(z + log_z_strides[2], mask=n < N, other=0.0).to(tl.float64) * _TURNS
    steps = (turns - tl.floor(turns)) * _STEPS
    whole = tl.floor(steps)
    return real, whole.to(tl.int64).to(tl.uint32), (steps - whole).to(tl.float32)


@triton.jit
def _powers(log_size, steps, rest, l):
    """Real and imaginary part of z^l."""
    size = tl.exp(log_size * l.to(tl.float32))
    sine, cosine = sine_and_cosine(steps * l.to(tl.uint32), rest * l.to(tl.float32))
    return size * cosine, size * sine


@triton.jit
def vandermonde_kernel(
    c_ptr,  # [D,N,2]
    c_strides,
    log_z_ptr,  # [D,N,2]
    log_z_strides,
    K_ptr,  # [D,L], contiguous
    L,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program ROWS x WIDTH taps of a channel: z^l = z^(WIDTH i) z^j for l = WIDTH i + j, as two real products.

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
        c = c_ptr + d * c_strides[0] + n * c_strides[1]
        c_real = 2 * tl.load(c, mask=n < N, other=0.0)[None, :]
        c_imag = 2 * tl.load(c + c_strides[2], mask=n < N, other=0.0)[None, :]
        log_size, steps, rest = _logarithms(log_z_ptr, log_z_strides, d, n, N)
        row_real, row_imag = _powers(log_size[None, :], steps[None, :], rest[None, :], row[:, None])  # [ROWS, BLOCK_N]
        real, imag = _powers(log_size[:, None], steps[:, None], rest[:, None], column[None, :])  # [BLOCK_N, WIDTH]
        K += dot(c_real * row_real - c_imag * row_imag, real, PRECISION)
        K -= dot(c_real * row_imag + c_imag * row_real, imag, PRECISION)
    l = row[:, None] + column[None, :]
    tl.store(K_ptr + d * L + l, K, mask=l < L)


@triton.jit
def vandermonde_backward_kernel(
    dK_ptr,  # [D,L]
    dK_strides,
    c_ptr,  # [D,N,2]
    c_strides,
    log_z_ptr,  # [D,N,2]
    log_z_strides,
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
    """A program BLOCK_N modes of a channel and the taps of a slot, ROWS x WIDTH of them at a time.

    dc = 2 conj(sum_l dK_l z^l) and dlog_z = 2 conj(c sum_l l dK_l z^l): products with z^j, then sums with z^(WIDTH i).
    """
    d, slot = (tl.program_id(0) // slots).to(tl.int64), tl.program_id(0) % slots
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column = tl.arange(0, WIDTH)
    log_size, steps, rest = _logarithms(log_z_ptr, log_z_strides, d, n, N)
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
        dK = tl.load(dK_ptr + d * dK_strides[0] + l * dK_strides[1], mask=l < L, other=0.0)
        late = dK * column.to(tl.float32)[None, :]
        x_real, x_imag = dot(dK, real, PRECISION), dot(dK, imag, PRECISION)  # [ROWS, BLOCK_N]
        lag = row.to(tl.float32)[:, None]
        y_real, y_imag = lag * x_real + dot(late, real, PRECISION), lag * x_imag + dot(late, imag, PRECISION)
        row_real, row_imag = _powers(log_size, steps, rest, tl.minimum(row, L - 1)[:, None])
        sum_real += row_real * x_real - row_imag * x_imag
        sum_imag += row_real * x_imag + row_imag * x_real
        lag_real += row_real * y_real - row_imag * y_imag
        lag_imag += row_real * y_imag + row_imag * y_real
    c = c_ptr + d * c_strides[0] + n * c_strides[1]
    c_real = tl.load(c, mask=n < N, other=0.0)
    c_imag = tl.load(c + c_strides[2], mask=n < N, other=0.0)
    y_real, y_imag = tl.sum(lag_real, 0), tl.sum(lag_imag, 0)
    slot = slot.to(tl.int64)
    of_c = partials_ptr + ((slot * D + d) * N + n) * 2
    of_log_z = partials_ptr + (((slots + slot) * D + d) * N + n) * 2
    tl.store(of_c, 2 * tl.sum(sum_real, 0), mask=n < N)
    tl.store(of_c + 1, -2 * tl.sum(sum_imag, 0), mask=n < N)
    tl.store(of_log_z, 2 * (c_real * y_real - c_imag * y_imag), mask=n < N)
    tl.store(of_log_z + 1, -2 * (c_real * y_imag + c_imag * y_real), mask=n < N)


@triton.jit
def _resolvents(z_real, z_imag, w_real, w_imag):
    """p + iq = 1 / (z - w) and s + it = 1 / (z - conj w)."""
    across, below, above = z_real - w_real, z_imag - w_imag, z_imag + w_imag
    near = 1 / (across * across + below * below)
    far = 1 / (across * across + above * above)
    return across * near, -below * near, across * far, -above * far


@triton.jit
def _of_difference(real, imag, grad_real, grad_imag):
    """The gradient of x, for r = 1 / x = real + i imag with gradient grad: -conj(r^2) grad."""
    a, b = (imag - real) * (imag + real), 2 * real * imag
    return a * grad_real - b * grad_imag, a * grad_imag + b * grad_real


@triton.jit
def _of_differences(p, q, s, t, v_real, v_imag, grad_real, grad_imag):
    """The gradients of z - w and of z - conj w: those of their reciprocals are conj(v) grad and v grad."""
    rr, ii, ri, ir = v_real * grad_real, v_imag * grad_imag, v_real * grad_imag, v_imag * grad_real
    near_real, near_imag = _of_difference(p, q, rr + ii, ri - ir)
    far_real, far_imag = _of_difference(s, t, rr - ii, ri + ir)
    return near_real, near_imag, far_real, far_imag


@triton.jit
def cauchy_kernel(
    v_ptr,  # [C,R,N,2]
    v_strides,
    z_ptr,  # [L,2]
    z_strides,
    w_ptr,  # [C,N,2]
    w_strides,
    sums_ptr,  # [C,R,L,2], contiguous
    R,
    L,
    N: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """A program BLOCK_R rows of a channel at BLOCK_L nodes: v (p + iq) + conj(v) (s + it), a pole at a time.

    Error against float64 in Triton's interpreter, of the largest entry: 1e-7 (median of random sizes up to N = 17,
    gradients too; 3e-7 at most but for sums that cancel). The plain formula in float32 has the same.
    """
    blocks, row_blocks = tl.cdiv(L, BLOCK_L), tl.cdiv(R, BLOCK_R)
    channel = (tl.program_id(0) // (blocks * row_blocks)).to(tl.int64)
    row = (tl.program_id(0) // blocks % row_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    l = (tl.program_id(0) % blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
    z = z_ptr + tl.minimum(l, L - 1).to(tl.int64) * z_strides[0]
    z_real, z_imag = tl.load(z), tl.load(z + z_strides[1])
    v_rows = v_ptr + channel * v_strides[0] + row * v_strides[1]
    w_row = w_ptr + channel * w_strides[0]
    sum_real = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    sum_imag = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    for start in range(0, N, SUMMED):
        few_real = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
        few_imag = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
        for n in range(start, min(start + SUMMED, N)):
            w = w_row + (0 * channel + n) * w_strides[1]
            p, q, s, t = _resolvents(z_real, z_imag, tl.load(w), tl.load(w + w_strides[2]))  # [BLOCK_L]
            v = v_rows + (0 * channel + n) * v_strides[2]
            v_real = tl.load(v, mask=row < R, other=0.0)[:, None]
            v_imag = tl.load(v + v_strides[3], mask=row < R, other=0.0)[:, None]
            few_real += v_real * (p + s)[None, :] + v_imag * (t - q)[None, :]
            few_imag += v_real * (q + t)[None, :] + v_imag * (p - s)[None, :]
        sum_real += few_real
        sum_imag += few_imag
    sums = sums_ptr + ((channel * R + row)[:, None] * L + l[None, :]) * 2
    inside = (row < R)[:, None] & (l < L)[None, :]
    tl.store(sums, sum_real, mask=inside)
    tl.store(sums + 1, sum_imag, mask=inside)


@triton.jit
def cauchy_backward_kernel(
    grad_ptr,  # [C,R,L,2]
    grad_strides,
    v_ptr,  # [C,R,N,2]
    v_strides,
    z_ptr,  # [L,2]
    z_strides,
    w_ptr,  # [C,N,2]
    w_strides,
    partials_ptr,  # [2,slots,C,R,N,2], contiguous: of v, of w
    C,
    R,
    L,
    slots,
    blocks_per_slot,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """A program BLOCK_N poles of a row and the nodes of a slot, BLOCK_L of them at a time."""
    slot = (tl.program_id(0) % slots).to(tl.int64)
    number = (tl.program_id(0) // slots).to(tl.int64)
    channel, row = number // R, number % R
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    known = tl.minimum(n, N - 1).to(tl.int64)
    v = v_ptr + channel * v_strides[0] + row * v_strides[1] + known * v_strides[2]
    w = w_ptr + channel * w_strides[0] + known * w_strides[1]
    v_real, v_imag = tl.load(v)[:, None], tl.load(v + v_strides[3])[:, None]
    w_real, w_imag = tl.load(w)[:, None], tl.load(w + w_strides[2])[:, None]
    dv_real = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    dv_imag = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    dw_real = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    dw_imag = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    first = (tl.program_id(0) % slots) * blocks_per_slot
    for block in range(first, tl.minimum(first + blocks_per_slot, tl.cdiv(L, BLOCK_L))):
        l = block * BLOCK_L + tl.arange(0, BLOCK_L)
        z = z_ptr + tl.minimum(l, L - 1).to(tl.int64) * z_strides[0]
        p, q, s, t = _resolvents(tl.load(z)[None, :], tl.load(z + z_strides[1])[None, :], w_real, w_imag)
        grad = grad_ptr + channel * grad_strides[0] + row * grad_strides[1] + l.to(tl.int64) * grad_strides[2]
        grad_real = tl.load(grad, mask=l < L, other=0.0)[None, :]
        grad_imag = tl.load(grad + grad_strides[3], mask=l < L, other=0.0)[None, :]
        dv_real += grad_real * (p + s) + grad_imag * (q + t)
        dv_imag += grad_real * (t - q) + grad_imag * (p - s)
        near_real, near_imag, far_real, far_imag = _of_differences(p, q, s, t, v_real, v_imag, grad_real, grad_imag)
        dw_real -= near_real + far_real
        dw_imag -= near_imag - far_imag
    of_v = partials_ptr + (((slot * C + channel) * R + row) * N + n) * 2
    of_w = partials_ptr + ((((slots + slot) * C + channel) * R + row) * N + n) * 2
    tl.store(of_v, tl.sum(dv_real, 1), mask=n < N)
    tl.store(of_v + 1, tl.sum(dv_imag, 1), mask=n < N)
    tl.store(of_w, tl.sum(dw_real, 1), mask=n < N)
    tl.store(of_w + 1, tl.sum(dw_imag, 1), mask=n < N)


@triton.jit
def cauchy_backward_nodes_kernel(
    grad_ptr,  # [C,R,L,2]
    grad_strides,
    v_ptr,  # [C,R,N,2]
    v_strides,
    z_ptr,  # [L,2]
    z_strides,
    w_ptr,  # [C,N,2]
    w_strides,
    partials_ptr,  # [slots,L,2], contiguous
    C,
    R,
    L,
    rows_per_slot,
    N: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """A program BLOCK_L nodes and the rows of a slot, counted through all channels, a pole at a time."""
    l = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    z = z_ptr + tl.minimum(l, L - 1).to(tl.int64) * z_strides[0]
    z_real, z_imag = tl.load(z), tl.load(z + z_strides[1])
    dz_real = tl.zeros([BLOCK_L], tl.float32)
    dz_imag = tl.zeros([BLOCK_L], tl.float32)
    slot = tl.program_id(0).to(tl.int64)
    first = slot * rows_per_slot
    for number in range(first, tl.minimum(first + rows_per_slot, C * R)):
        channel, row = (0 * slot + number) // R, (0 * slot + number) % R
        grad = grad_ptr + channel * grad_strides[0] + row * grad_strides[1] + l.to(tl.int64) * grad_strides[2]
        grad_real = tl.load(grad, mask=l < L, other=0.0)
        grad_imag = tl.load(grad + grad_strides[3], mask=l < L, other=0.0)
        v_row = v_ptr + channel * v_strides[0] + row * v_strides[1]
        w_row = w_ptr + channel * w_strides[0]
        for start in range(0, N, SUMMED):
            few_real = tl.zeros([BLOCK_L], tl.float32)
            few_imag = tl.zeros([BLOCK_L], tl.float32)
            for n in range(start, min(start + SUMMED, N)):
                v, w = v_row + (0 * slot + n) * v_strides[2], w_row + (0 * slot + n) * w_strides[1]
                p, q, s, t = _resolvents(z_real, z_imag, tl.load(w), tl.load(w + w_strides[2]))
                v_real, v_imag = tl.load(v), tl.load(v + v_strides[3])
                near_real, near_imag, far_real, far_imag = _of_differences(
                    p, q, s, t, v_real, v_imag, grad_real, grad_imag
                )
                few_real += near_real + far_real
                few_imag += near_imag + far_imag
            dz_real += few_real
            dz_imag += few_imag
    partial = partials_ptr + (slot * L + l) * 2
    tl.store(partial, dz_real, mask=l < L)
    tl.store(partial + 1, dz_imag, mask=l < L)


def _parts(tensor: Tensor) -> Tensor:
    """Real and imaginary part in a last axis of two: a view, unless the tensor is a conjugate not yet computed."""
    return torch.view_as_real(tensor.resolve_conj())


def _split(L: int, most_rows: int = 16) -> tuple[int, int]:
    """ROWS and WIDTH of a block of taps. What fits without spilling: 16 rows with four sums, or a loop over modes."""
    if L <= 256:
        return 16, 16
    return (16 if L <= 512 else most_rows), 32


def vandermonde(c: Tensor, log_z: Tensor, L: int) -> Tensor:
    """K [D,L] float32 of c, log_z [D,N] complex64."""
    D, N = c.shape
    c, log_z = _parts(c), _parts(log_z)
    K = torch.empty(D, L, dtype=torch.float32, device=c.device)
    rows, width = _split(L, most_rows=32 if N <= MOST_MODES else 16)
    launch(
        vandermonde_kernel,
        (D * triton.cdiv(L, rows * width),),
        c_ptr=c,
        c_strides=c.stride(),
        log_z_ptr=log_z,
        log_z_strides=log_z.stride(),
        K_ptr=K,
        L=L,
        N=N,
        BLOCK_N=min(MOST_MODES, block_of(N)),
        ROWS=rows,
        WIDTH=width,
        PRECISION=dot_precision(vandermonde_kernel, c),
        num_warps=rows // 8,
    )
    return K


def vandermonde_backward(dK: Tensor, c: Tensor, log_z: Tensor) -> tuple[Tensor, Tensor]:
    """dc and dlog_z [D,N] complex64."""
    (D, N), L = c.shape, dK.shape[1]
    c, log_z = _parts(c), _parts(log_z)
    block_n, (rows, width) = min(MOST_MODES, block_of(N)), _split(L)
    blocks, tiles = triton.cdiv(L, rows * width), triton.cdiv(N, block_n)
    slots, blocks_per_slot = slots_of(blocks, D * tiles)
    partials = torch.empty(2, slots, D, N, 2, dtype=torch.float32, device=c.device)
    launch(
        vandermonde_backward_kernel,
        (D * slots, tiles),
        dK_ptr=dK,
        dK_strides=dK.stride(),
        c_ptr=c,
        c_strides=c.stride(),
        log_z_ptr=log_z,
        log_z_strides=log_z.stride(),
        partials_ptr=partials,
        D=D,
        L=L,
        slots=slots,
        blocks_per_slot=blocks_per_slot,
        N=N,
        BLOCK_N=block_n,
        ROWS=rows,
        WIDTH=width,
        PRECISION=dot_precision(vandermonde_backward_kernel, dK),
        num_warps=4,
    )
    dc, dlog_z = (torch.view_as_complex(partial.sum(0)) for partial in partials)
    return dc, dlog_z


def _operands(v: Tensor, z: Tensor, w: Tensor) -> dict:
    """What the kernels of `cauchy` have in common."""
    parts = {"v": _parts(v), "z": _parts(z), "w": _parts(w)}
    arguments = {f"{name}_ptr": tensor for name, tensor in parts.items()}
    arguments |= {f"{name}_strides": tensor.stride() for name, tensor in parts.items()}
    return {**arguments, "R": v.shape[1], "L": z.shape[0], "N": v.shape[2]}


def cauchy(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """[C,R,L] complex64 of v [C,R,N], z [L] and w [C,N] complex64."""
    (C, R, _), L = v.shape, z.shape[0]
    sums = torch.empty(C, R, L, 2, dtype=torch.float32, device=v.device)
    block_r, block_l = min(MOST_ROWS, triton.next_power_of_2(R)), 128
    launch(
        cauchy_kernel,
        (C * triton.cdiv(R, block_r) * triton.cdiv(L, block_l),),
        **_operands(v, z, w),
        sums_ptr=sums,
        SUMMED=SUMMED_AT_ONCE,
        BLOCK_R=block_r,
        BLOCK_L=block_l,
        num_warps=4,
    )
    return torch.view_as_complex(sums)


def cauchy_backward(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """dv [C,R,N] and dw [C,N] complex64."""
    (C, R, N), L, grad = v.shape, z.shape[0], _parts(grad)
    block_n, block_l = min(MOST_MODES, triton.next_power_of_2(N)), 32
    blocks, tiles = triton.cdiv(L, block_l), triton.cdiv(N, block_n)
    slots, blocks_per_slot = slots_of(blocks, C * R * tiles)
    partials = torch.empty(2, slots, C, R, N, 2, dtype=torch.float32, device=v.device)
    launch(
        cauchy_backward_kernel,
        (C * R * slots, tiles),
        **_operands(v, z, w),
        grad_ptr=grad,
        grad_strides=grad.stride(),
        partials_ptr=partials,
        C=C,
        slots=slots,
        blocks_per_slot=blocks_per_slot,
        BLOCK_N=block_n,
        BLOCK_L=block_l,
        num_warps=4,
    )
    return torch.view_as_complex(partials[0].sum(0)), torch.view_as_complex(partials[1].sum((0, 2)))


def cauchy_backward_nodes(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """dz [L] complex64."""
    (C, R, _), L, grad = v.shape, z.shape[0], _parts(grad)
    block_l = 128
    blocks = triton.cdiv(L, block_l)
    slots, rows_per_slot = slots_of(C * R, blocks, fillings=4)
    partials = torch.empty(slots, L, 2, dtype=torch.float32, device=v.device)
    launch(
        cauchy_backward_nodes_kernel,
        (slots, blocks),
        **_operands(v, z, w),
        grad_ptr=grad,
        grad_strides=grad.stride(),
        partials_ptr=partials,
        C=C,
        rows_per_slot=rows_per_slot,
        SUMMED=SUMMED_AT_ONCE,
        BLOCK_L=block_l,
        num_warps=4,
    )
    return torch.view_as_complex(partials.sum(0))
