"""Vandermonde and Cauchy products as real matrix products: what runs without a Triton kernel."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..common.blocks import block_numbers
from ..common.dtypes import compute_dtype

# Phases are split into a multiple of 1 / TURN_STEPS of a turn and a rest, see `_powers`.
TURN_STEPS = 2**14


def vandermonde(c: Tensor, log_z: Tensor, L: int) -> Tensor:
    """K[l] = 2 Re sum_n c_n z_n^l with l = width i + j, where z^l = z^(width i) z^j.

    A product of [L / width, 2N] by [2N, width] real matrices a channel: N (width + L / width) exponentials, not N L.
    """
    dtype = compute_dtype(c, log_z).to_complex()
    c, log_z = torch.broadcast_tensors(c.to(dtype), log_z.to(dtype))
    width = min(L, 2 ** math.ceil(math.log2(L) / 2))
    c_real, c_imag = 2 * c.real.unsqueeze(-1), 2 * c.imag.unsqueeze(-1)
    row_real, row_imag = _powers(log_z, width, -(-L // width))  # [..., N, rows]
    left = torch.cat([c_real * row_real - c_imag * row_imag, -c_real * row_imag - c_imag * row_real], -2)
    right = torch.cat(_powers(log_z, 1, width), -2)  # [..., 2N, width]
    return (left.mT @ right).flatten(-2)[..., :L]


def _powers(log_z: Tensor, stride: int, count: int) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of z^(stride p), p < count: each [..., N, count].

    The angle is where float32 loses: p times an angle of several turns is off by 1e-6 of itself. Here it is taken in
    turns, modulo 1 in float64 (N numbers), and split into a coarse part, a multiple of 1 / TURN_STEPS, and a rest below
    half of that. For p up to 2^11, coarse * p is exact in float32, also modulo 1, and rest * p is small.
    """
    real = log_z.real.dtype
    p = torch.arange(count, device=log_z.device, dtype=real)
    turns = log_z.imag.double() * (stride / (2 * math.pi))
    turns = turns - turns.detach().round()
    coarse = (turns.detach() * TURN_STEPS).round() / TURN_STEPS
    rest = (turns - coarse).to(real).unsqueeze(-1) * p
    coarse = coarse.to(real).unsqueeze(-1) * p
    angle = (2 * math.pi) * (coarse - coarse.round() + rest)
    decay = torch.exp((stride * log_z.real).unsqueeze(-1) * p)
    return decay * torch.cos(angle), decay * torch.sin(angle)


def cauchy(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """sum_n v_n / (z - w_n) + conj(v_n) / (z - conj w_n), the sum over n as a real matrix product."""
    dtype = compute_dtype(v, z, w).to_complex()
    N = w.shape[-1]
    leading = torch.broadcast_shapes(v.shape[:-1], w.shape[:-1])
    # The leading axes that only v has are rows of one product with the poles' channel: [channels, rows, N].
    rows = leading[: len(leading) - (w.ndim - 1)]
    channels = leading[len(rows) :]
    v = v.to(dtype).expand(*leading, N).reshape(math.prod(rows), math.prod(channels), N).transpose(0, 1)
    w = w.to(dtype).expand(*channels, N).reshape(math.prod(channels), N)
    sums = _Cauchy.apply(v, z.to(dtype), w)  # [channels, rows, Lz]
    return sums.transpose(0, 1).reshape(*leading, z.shape[0])


class _Cauchy(torch.autograd.Function):
    """v [channels, rows, N], z [Lz], w [channels, N] -> [channels, rows, Lz], by blocks of channels and nodes."""

    @staticmethod
    def forward(ctx, v: Tensor, z: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(v, z, w)
        sums = z.new_empty(*v.shape[:2], z.shape[0])
        parts = torch.view_as_real(sums)
        v = torch.cat([v.real, v.imag], -1)
        for channels, nodes in _blocks(w, z):
            real, imag = _product_matrices(*_resolvents(z[nodes], w[channels]))
            parts[channels, :, nodes, 0] = v[channels] @ real
            parts[channels, :, nodes, 1] = v[channels] @ imag
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        v, z, w = ctx.saved_tensors
        v = torch.cat([v.real, v.imag], -1)
        N = w.shape[-1]
        grad_v = torch.zeros_like(v)
        grad_z = torch.view_as_real(torch.zeros_like(z))
        grad_w = torch.view_as_real(torch.zeros_like(w, memory_format=torch.contiguous_format))
        for channels, nodes in _blocks(w, z):
            p, q, s, t = _resolvents(z[nodes], w[channels])
            real, imag = _product_matrices(p, q, s, t)
            grad_real, grad_imag = grad[channels, :, nodes].real, grad[channels, :, nodes].imag
            grad_v[channels] += grad_real @ real.mT + grad_imag @ imag.mT
            # Back through the two matrices to the resolvents ...
            sum_real, cross_real = (v[channels].mT @ grad_real).split(N, -2)
            sum_imag, cross_imag = (v[channels].mT @ grad_imag).split(N, -2)
            near = _through_reciprocal(p, q, sum_real + cross_imag, sum_imag - cross_real)
            far = _through_reciprocal(s, t, sum_real - cross_imag, sum_imag + cross_real)
            # ... which hold z - w and z - conj w.
            for part, sign in ((0, 1), (1, -1)):
                grad_z[nodes, part] += (near[part] + far[part]).sum((0, 1))
                grad_w[channels, :, part] -= (near[part] + sign * far[part]).sum(-1)
        return (
            torch.complex(grad_v[..., :N], grad_v[..., N:]),
            torch.view_as_complex(grad_z),
            torch.view_as_complex(grad_w),
        )


def _blocks(w: Tensor, z: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of channels and nodes that cover [channels, Lz]: [channels, N, Lz] is never made as a whole."""
    (channels, N), nodes, numbers = w.shape, z.shape[0], block_numbers(w.device)
    node_step = max(1, min(nodes, numbers // max(N, 1)))
    channel_step = max(1, numbers // max(N * node_step, 1))
    for node in range(0, nodes, node_step):
        for channel in range(0, channels, channel_step):
            yield slice(channel, channel + channel_step), slice(node, node + node_step)


def _resolvents(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p + iq = 1 / (z - w) and s + it = 1 / (z - conj w), each part [channels, N, nodes]."""
    across = z.real - w.real.unsqueeze(-1)
    below = z.imag - w.imag.unsqueeze(-1)
    above = z.imag + w.imag.unsqueeze(-1)
    square = across * across
    near = (below * below).add_(square).reciprocal_()
    far = (above * above).add_(square).reciprocal_()
    return across * near, below.mul_(near).neg_(), across.mul_(far), above.mul_(far).neg_()


def _product_matrices(p: Tensor, q: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices [channels, 2N, nodes] that [Re v, Im v] is multiplied by for the real and imaginary part of the sum.

    v (p + iq) + conj(v) (s + it) = Re v (p + s) + Im v (t - q) + i (Re v (q + t) + Im v (p - s)).
    """
    return torch.cat([p + s, t - q], -2), torch.cat([q + t, p - s], -2)


def _through_reciprocal(real: Tensor, imag: Tensor, grad_real: Tensor, grad_imag: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of x, for r = 1 / x = real + i imag with gradient grad: -conj(r^2) grad, as two real parts."""
    a, b = imag * imag - real * real, 2 * real * imag
    return a * grad_real - b * grad_imag, a * grad_imag + b * grad_real
