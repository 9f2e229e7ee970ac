"""Cauchy products over conjugate pairs in Triton, a complex number as two real ones.

C channels of N poles, R rows of numerators over the poles of a channel, L nodes. A last axis of 2 has real and
imaginary part.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..common.strided import load, strided
from ..common.triton_tiles import parts_of, slots_of
from ..configurations import configured
from ..launch import launch

# Poles at a time.
MOST_POLES = 32
# Rows over the same poles that are summed together, and terms that are added up one by one.
MOST_ROWS = 4
SUMMED_AT_ONCE = 8


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


@triton.jit(do_not_specialize=["R", "L"], do_not_specialize_on_alignment=["z"])
def cauchy_kernel(
    v,  # Strided [C,R,N,2]
    z,  # Strided [L,2]
    w,  # Strided [C,N,2]
    sums_ptr,  # [C,R,L,2], contiguous
    R,
    L,
    N: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Each program takes BLOCK_R rows of a channel at BLOCK_L nodes: v (p + iq) + conj(v) (s + it), a pole at a time.

    Error against float64 in Triton's interpreter, of the largest entry: 1e-7 (median of random sizes up to N = 17,
    gradients too; 3e-7 at most but for sums that cancel). The plain formula in float32 has the same.
    """
    blocks, row_blocks = tl.cdiv(L, BLOCK_L), tl.cdiv(R, BLOCK_R)
    channel = (tl.program_id(0) // (blocks * row_blocks)).to(tl.int64)
    row = (tl.program_id(0) // blocks % row_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    l = (tl.program_id(0) % blocks) * BLOCK_L + tl.arange(0, BLOCK_L)
    node = tl.minimum(l, L - 1).to(tl.int64)
    z_real, z_imag = load(z, (node, 0)), load(z, (node, 1))
    sum_real = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    sum_imag = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
    for start in range(0, N, SUMMED):
        few_real = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
        few_imag = tl.zeros([BLOCK_R, BLOCK_L], tl.float32)
        for n in range(start, min(start + SUMMED, N)):
            pole = 0 * channel + n
            p, q, s, t = _resolvents(z_real, z_imag, load(w, (channel, pole, 0)), load(w, (channel, pole, 1)))
            v_real = load(v, (channel, row, pole, 0), mask=row < R)[:, None]
            v_imag = load(v, (channel, row, pole, 1), mask=row < R)[:, None]
            few_real += v_real * (p + s)[None, :] + v_imag * (t - q)[None, :]
            few_imag += v_real * (q + t)[None, :] + v_imag * (p - s)[None, :]
        sum_real += few_real
        sum_imag += few_imag
    sums = sums_ptr + ((channel * R + row)[:, None] * L + l[None, :]) * 2
    inside = (row < R)[:, None] & (l < L)[None, :]
    tl.store(sums, sum_real, mask=inside)
    tl.store(sums + 1, sum_imag, mask=inside)


@triton.jit(do_not_specialize=["C", "R", "L", "slots", "blocks_per_slot"], do_not_specialize_on_alignment=["z"])
def cauchy_backward_kernel(
    grad,  # Strided [C,R,L,2]
    v,  # Strided [C,R,N,2]
    z,  # Strided [L,2]
    w,  # Strided [C,N,2]
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
    """Each program takes BLOCK_N poles of a row and the nodes of a slot, BLOCK_L of them at a time."""
    slot = (tl.program_id(0) % slots).to(tl.int64)
    number = (tl.program_id(0) // slots).to(tl.int64)
    channel, row = number // R, number % R
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    known = tl.minimum(n, N - 1).to(tl.int64)
    v_real, v_imag = load(v, (channel, row, known, 0))[:, None], load(v, (channel, row, known, 1))[:, None]
    w_real, w_imag = load(w, (channel, known, 0))[:, None], load(w, (channel, known, 1))[:, None]
    dv_real = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    dv_imag = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    dw_real = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    dw_imag = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
    first = (tl.program_id(0) % slots) * blocks_per_slot
    for block in range(first, tl.minimum(first + blocks_per_slot, tl.cdiv(L, BLOCK_L))):
        l = block * BLOCK_L + tl.arange(0, BLOCK_L)
        node = tl.minimum(l, L - 1).to(tl.int64)
        p, q, s, t = _resolvents(load(z, (node, 0))[None, :], load(z, (node, 1))[None, :], w_real, w_imag)
        grad_real = load(grad, (channel, row, l.to(tl.int64), 0), mask=l < L)[None, :]
        grad_imag = load(grad, (channel, row, l.to(tl.int64), 1), mask=l < L)[None, :]
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


@triton.jit(do_not_specialize=["C", "R", "L", "rows_per_slot"], do_not_specialize_on_alignment=["z"])
def cauchy_backward_nodes_kernel(
    grad,  # Strided [C,R,L,2]
    v,  # Strided [C,R,N,2]
    z,  # Strided [L,2]
    w,  # Strided [C,N,2]
    partials_ptr,  # [slots,L,2], contiguous
    C,
    R,
    L,
    rows_per_slot,
    N: tl.constexpr,
    SUMMED: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Each program takes BLOCK_L nodes and the rows of a slot, counted through all channels, a pole at a time."""
    l = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    node = tl.minimum(l, L - 1).to(tl.int64)
    z_real, z_imag = load(z, (node, 0)), load(z, (node, 1))
    dz_real = tl.zeros([BLOCK_L], tl.float32)
    dz_imag = tl.zeros([BLOCK_L], tl.float32)
    slot = tl.program_id(0).to(tl.int64)
    first = slot * rows_per_slot
    for number in range(first, tl.minimum(first + rows_per_slot, C * R)):
        channel, row = (0 * slot + number) // R, (0 * slot + number) % R
        grad_real = load(grad, (channel, row, l.to(tl.int64), 0), mask=l < L)
        grad_imag = load(grad, (channel, row, l.to(tl.int64), 1), mask=l < L)
        for start in range(0, N, SUMMED):
            few_real = tl.zeros([BLOCK_L], tl.float32)
            few_imag = tl.zeros([BLOCK_L], tl.float32)
            for n in range(start, min(start + SUMMED, N)):
                pole = 0 * slot + n
                p, q, s, t = _resolvents(z_real, z_imag, load(w, (channel, pole, 0)), load(w, (channel, pole, 1)))
                v_real, v_imag = load(v, (channel, row, pole, 0)), load(v, (channel, row, pole, 1))
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


def _operands(v: Tensor, z: Tensor, w: Tensor) -> dict:
    """Collect the arguments that all kernels of `cauchy` take."""
    parts = {"v": parts_of(v), "z": parts_of(z), "w": parts_of(w)}
    sizes = {"R": v.shape[1], "L": z.shape[0], "N": v.shape[2]}
    return {name: strided(tensor) for name, tensor in parts.items()} | sizes


def cauchy(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """[C,R,L] complex64 of v [C,R,N], z [L] and w [C,N] complex64."""
    (C, R, N), L = v.shape, z.shape[0]
    sums = torch.empty(C, R, L, 2, dtype=torch.float32, device=v.device)
    tiles = {"BLOCK_R": min(MOST_ROWS, triton.next_power_of_2(R)), "BLOCK_L": 128, "num_warps": 4}
    tiles = configured(cauchy_kernel, sums, {"L": L, "N": N, "R": R}, tiles)
    launch(
        cauchy_kernel,
        (C * triton.cdiv(R, tiles["BLOCK_R"]) * triton.cdiv(L, tiles["BLOCK_L"]),),
        **_operands(v, z, w),
        sums_ptr=sums,
        SUMMED=SUMMED_AT_ONCE,
        **tiles,
    )
    return torch.view_as_complex(sums)


def cauchy_backward(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """dv [C,R,N] and dw [C,N] complex64."""
    (C, R, N), L, grad = v.shape, z.shape[0], parts_of(grad)
    tiles = {"BLOCK_N": min(MOST_POLES, triton.next_power_of_2(N)), "BLOCK_L": 32, "num_warps": 4}
    tiles = configured(cauchy_backward_kernel, grad, {"L": L, "N": N}, tiles)
    parts = triton.cdiv(N, tiles["BLOCK_N"])
    slots, blocks_per_slot = slots_of(triton.cdiv(L, tiles["BLOCK_L"]), C * R * parts)
    partials = torch.empty(2, slots, C, R, N, 2, dtype=torch.float32, device=v.device)
    launch(
        cauchy_backward_kernel,
        (C * R * slots, parts),
        **_operands(v, z, w),
        grad=strided(grad),
        partials_ptr=partials,
        C=C,
        slots=slots,
        blocks_per_slot=blocks_per_slot,
        **tiles,
    )
    return torch.view_as_complex(partials[0].sum(0)), torch.view_as_complex(partials[1].sum((0, 2)))


def cauchy_backward_nodes(grad: Tensor, v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """dz [L] complex64."""
    (C, R, N), L, grad = v.shape, z.shape[0], parts_of(grad)
    tiles = configured(cauchy_backward_nodes_kernel, grad, {"L": L, "N": N}, {"BLOCK_L": 128, "num_warps": 4})
    blocks = triton.cdiv(L, tiles["BLOCK_L"])
    slots, rows_per_slot = slots_of(C * R, blocks, fillings=4)
    partials = torch.empty(slots, L, 2, dtype=torch.float32, device=v.device)
    launch(
        cauchy_backward_nodes_kernel,
        (slots, blocks),
        **_operands(v, z, w),
        grad=strided(grad),
        partials_ptr=partials,
        C=C,
        rows_per_slot=rows_per_slot,
        SUMMED=SUMMED_AT_ONCE,
        **tiles,
    )
    return torch.view_as_complex(partials.sum(0))
