"""Vandermonde and Cauchy products as real matrix multiplications: for devices without a Triton kernel."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ..blocks import block_numbers, by_blocks
from ..common.dtypes import complex_dtype, compute_dtype
from ..transforms import apply, gradients
from .shapes import by_channel

# Phases are split into a multiple of 1 / TURN_STEPS of a turn and a rest, see `_powers`.
TURN_STEPS = 2**14
# Cauchy: nodes in a block, and terms of a sum that are added up one by one.
NODES_AT_ONCE = 64
SUMMED_AT_ONCE = 16


def vandermonde(c: Tensor, log_z: Tensor, L: int) -> Tensor:
    """K[l] = 2 Re sum_n c_n z_n^l with l = width i + j, where z^l = z^(width i) z^j.

    A product of [L / width, 2N] by [2N, width] real matrices a channel: N (width + L / width) exponentials, not N L.
    """
    dtype = complex_dtype(compute_dtype(c, log_z))
    c, log_z = torch.broadcast_tensors(c.to(dtype), log_z.to(dtype))
    leading, N = c.shape[:-1], c.shape[-1]
    c, log_z = c.reshape(-1, N), log_z.reshape(-1, N)  # [D, N]
    width = min(L, 2 ** math.ceil(math.log2(L) / 2))
    size = max(1, block_numbers(c.device) // (N * width))
    return by_blocks(partial(_vandermonde, L, width), (c, log_z), size).reshape(*leading, L)


def _vandermonde(L: int, width: int, c: Tensor, log_z: Tensor) -> Tensor:
    """`vandermonde` of a block of channels [D, N]."""
    c_real, c_imag = 2 * c.real.unsqueeze(-1), 2 * c.imag.unsqueeze(-1)
    row_real, row_imag = _powers(log_z, width, -(-L // width))  # [D, N, rows]
    real, imag = _powers(log_z, 1, width)  # [D, N, width]
    # Re(a b) = Re a Re b - Im a Im b
    K = torch.baddbmm(
        (c_real * row_real - c_imag * row_imag).mT @ real, (-c_real * row_imag - c_imag * row_real).mT, imag
    )
    return K.flatten(-2)[:, :L]


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
    """sum_n v_n / (z - w_n) + conj(v_n) / (z - conj w_n), the sum over n as a real matrix multiplication."""
    dtype = complex_dtype(compute_dtype(v, z, w))
    leading = torch.broadcast_shapes(v.shape[:-1], w.shape[:-1])
    # The rows of a channel are those of one product with its poles.
    v, w = by_channel(v.to(dtype), w.to(dtype))
    sums = apply(_Cauchy, v, z.to(dtype), w)  # [channels, rows, Lz]
    return sums.transpose(0, 1).reshape(*leading, z.shape[0])


class _Cauchy(torch.autograd.Function):
    """v [channels, rows, N], z [Lz], w [channels, N] -> [channels, rows, Lz], by blocks of channels and nodes."""

    @staticmethod
    def forward(ctx, v: Tensor, z: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(v, z, w)
        sums = z.new_empty(*v.shape[:2], z.shape[0])
        parts = torch.view_as_real(sums)
        v_real, v_imag = v.real.contiguous(), v.imag.contiguous()
        for channels, nodes in _blocks(w, z):
            real, imag = v_real[channels], v_imag[channels]
            p, q, s, t = _resolvents(z[nodes], w[channels])
            # v (p + iq) + conj(v) (s + it)
            parts[channels, :, nodes, 0] = _product(real, p + s) + _product(imag, t - q)
            parts[channels, :, nodes, 1] = _product(real, q + t) + _product(imag, p - s)
        return sums

    @staticmethod
    def formula(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
        v, w = v.unsqueeze(-1), w[:, None, :, None]
        return (v / (z - w) + v.conj() / (z - w.conj())).sum(-2)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (v, z, w) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of these are needed
            return tuple(gradients(_Cauchy.formula, (v, z, w), (grad,)))
        v_real, v_imag = v.real.contiguous(), v.imag.contiguous()
        grad_v, grad_z, grad_w = (
            torch.view_as_real(torch.zeros_like(t, memory_format=torch.contiguous_format)) for t in (v, z, w)
        )
        for channels, nodes in _blocks(w, z):
            p, q, s, t = _resolvents(z[nodes], w[channels])
            grad_real = grad[channels, :, nodes].real.contiguous()
            grad_imag = grad[channels, :, nodes].imag.contiguous()
            grad_v[channels, ..., 0] += _product(grad_real, (p + s).mT) + _product(grad_imag, (q + t).mT)
            grad_v[channels, ..., 1] += _product(grad_real, (t - q).mT) + _product(grad_imag, (p - s).mT)
            # conj(v) grad and v grad are the gradients of the two resolvents ...
            real, imag = v_real[channels].mT, v_imag[channels].mT
            rr, ii, ri, ir = real @ grad_real, imag @ grad_imag, real @ grad_imag, imag @ grad_real
            near = _through_reciprocal(p, q, rr + ii, ri - ir)
            far = _through_reciprocal(s, t, rr - ii, ri + ir)
            # ... which hold z - w and z - conj w.
            for part, sign in ((0, 1), (1, -1)):
                grad_z[nodes, part] += (near[part] + far[part]).sum((0, 1))
                grad_w[channels, :, part] -= (near[part] + sign * far[part]).sum(-1)
        return tuple(torch.view_as_complex(gradient) for gradient in (grad_v, grad_z, grad_w))


def _blocks(w: Tensor, z: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of channels and nodes that cover [channels, Lz]: [channels, N, Lz] is never made as a whole."""
    (channels, N), nodes, numbers = w.shape, z.shape[0], block_numbers(w.device)
    node_step = min(nodes, NODES_AT_ONCE)
    channel_step = max(1, numbers // (N * node_step))
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


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for [channels, V, K] and [channels, K, M] with K summed in pieces: a plain product adds up one by one, and
    loses twice as much."""
    pieces = a.shape[-1] // SUMMED_AT_ONCE if a.shape[-1] % SUMMED_AT_ONCE == 0 else 1
    return (a.unflatten(-1, (pieces, -1)).transpose(1, 2) @ b.unflatten(1, (pieces, -1))).sum(1)


def _through_reciprocal(real: Tensor, imag: Tensor, grad_real: Tensor, grad_imag: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of x, for r = 1 / x = real + i imag with gradient grad: -conj(r^2) grad, as two real parts."""
    a, b = (imag - real) * (imag + real), 2 * real * imag
    return a * grad_real - b * grad_imag, a * grad_imag + b * grad_real
