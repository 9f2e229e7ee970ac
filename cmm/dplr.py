"""A state-space model with a diagonal-plus-rank-one matrix: discretised, its convolution kernel, its chunks of time."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.blocks import block_numbers, by_blocks
from ..kernels.transforms import apply, gradients

# Tokens that a prompt's state is advanced by at once: one [N, N] and one [N, CHUNK] product a channel.
CHUNK = 64
# So many numbers in the rows are held at once, and beyond them a quarter at a time.
FEW = 2**21


class Discrete(NamedTuple):
    """One time step on the stored half of the modes: s' = dA s + dB u with dA s = diagonal s - g 2 Re(h . s).

    All complex [D, N/2].
    """

    diagonal: Tensor
    g: Tensor
    h: Tensor
    dB: Tensor

    def advance(self, s: Tensor) -> Tensor:
        """dA s for s [B, D, N/2]: a diagonal plus a rank-one matrix, so O(N)."""
        return self.diagonal * s - self.g * both_halves(self.h * s)

    def matrix(self) -> Tensor:
        """dA [D, N, N] on states as real vectors (Re s_0, Im s_0, Re s_1, ...)."""
        re, im = self.diagonal.real, self.diagonal.imag
        blocks = torch.stack([torch.stack([re, -im], -1), torch.stack([im, re], -1)], -2)  # [D, N/2, 2, 2]
        identity = torch.eye(re.shape[-1], dtype=re.dtype, device=re.device)
        diagonal = torch.einsum("dnij,nm->dnimj", blocks, identity).flatten(3, 4).flatten(1, 2)
        return diagonal - 2 * column(self.g).unsqueeze(-1) * column(self.h.conj()).unsqueeze(-2)


def discretise(w: Tensor, P: Tensor, B: Tensor, dt: Tensor) -> Discrete:
    """The bilinear rule for A = diag(w) - P P^H over both halves of the modes; w, P, B [D, N/2] complex, dt [D] real.

        dA = (2/dt - A)^-1 (2/dt + A),   dB = (2/dt - A)^-1 2 B

    By Woodbury (2/dt - A)^-1 = E - r E P P^H E with E = 1 / (2/dt - w) and r = 1 / (1 + P^H E P), whence
    diagonal = E (2/dt + w), g = r E P, h = conj(P) (1 + diagonal) and dB = 2 E B - g P^H 2 E B.
    S4 (arXiv 2111.00396), appendix C.
    """
    rate = (2 / dt).unsqueeze(-1)
    E = 1 / (rate - w)
    EP, EB = E * P, 2 * E * B
    g = EP / (1 + both_halves(P.conj() * EP))
    h = P.conj() * (2 * rate * E)  # 1 + diagonal without the cancellation
    return Discrete(E * (rate + w), g, h, EB - g * both_halves(P.conj() * EB))


def both_halves(x: Tensor) -> Tensor:
    """The sum over all N modes, of which x [..., N/2] holds one of each conjugate pair: 2 Re sum x."""
    return 2 * x.sum(-1, keepdim=True).real


def column(x: Tensor) -> Tensor:
    """Complex [..., N/2] as a real vector [..., N]."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


def readout(C: Tensor) -> Tensor:
    """The row [..., 1, N] whose product with a state's `column` is 2 Re(C . s)."""
    return 2 * column(C.conj()).unsqueeze(-2)


class Chunk(NamedTuple):
    """Effect of CHUNK tokens at once, on states as rows [D, B, N]: a row times a matrix is what a CPU does fastest."""

    inputs: Tensor
    """(dA^(CHUNK-1-j) dB)^T [D, CHUNK, N]: inputs [D, B, CHUNK] -> the state they leave."""
    outputs: Tensor
    """(C dA^(j+1))^T [D, N, CHUNK]: a state -> the outputs it leaves."""
    power: Tensor
    """(dA^CHUNK)^T [D, N, N]: a state -> the state it leaves."""


def chunked(step: Discrete, C: Tensor, size: int = CHUNK) -> Chunk:
    """Compute a chunk by doubling (size is a power of two): log2(size) squarings of dA, and as many products.

    dA never expands a state (A + A^H is negative definite), so its powers lose nothing in float32.
    """
    power = step.matrix().mT
    inputs, outputs = column(step.dB).unsqueeze(-2), (readout(C) @ power.mT).mT
    while inputs.shape[-2] < size:
        inputs = torch.cat([inputs @ power, inputs], -2)
        outputs = torch.cat([outputs, power @ outputs], -1)
        power = power @ power
    return Chunk(inputs, outputs, power.contiguous())


def kernel(step: Discrete, C: Tensor, length: int) -> Tensor:
    """K_l = 2 Re(C dA^l dB), l < length -> [D, length].

    With l = b i + j the product of the rows C dA^(b i) and the columns dA^j dB, where dA^b is a diagonal plus b outer
    products (`_powers`): no power of dA is ever made as a matrix. Exact for every length and without the generating
    function, whose correction (I - dA^length) needs such powers anyway. b is the largest power of two whose square is
    not beyond the length: fastest of its neighbours for 128, 512 and 2048 taps.

    A long kernel by blocks of channels, made again in the backward pass: beyond K only a block is held.
    """
    columns = 2 ** ((length.bit_length() - 1) // 2)
    numbers, few = 2 * C.numel() * length // columns, max(FEW, block_numbers(C.device))
    size = C.shape[0] if numbers <= few else -(-C.shape[0] * few // (4 * numbers))
    return by_blocks(partial(_kernel, length, columns), (*step, C), size)


def _kernel(length: int, columns: int, diagonal: Tensor, g: Tensor, h: Tensor, dB: Tensor, C: Tensor) -> Tensor:
    """`kernel` of a block of channels."""
    power, G, H, first = _powers(diagonal, g, h, dB, columns)
    rows = apply(_Rows, readout(C), power, G, H, -(-length // columns))
    return (rows @ first.mT).flatten(-2)[:, :length]


def _powers(diagonal: Tensor, g: Tensor, h: Tensor, dB: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dA^size, a power of two, by doubling, and the columns dA^j dB, j < size.

        dA^m = diagonal^m - sum_{j < m} (dA^j g) (h diagonal^(m-1-j))

    Vectors are rows of real numbers, as `column` and `readout` make them. Returns diagonal^size [D, 1, N/2] complex; G
    and H [D, size, N], the factors of the sum, from j = size - 1 down; and the columns [D, size, N].
    """
    power = diagonal.unsqueeze(1)
    G, columns = column(g).unsqueeze(1), column(dB).unsqueeze(1)
    h = h.unsqueeze(1)
    while (m := G.shape[1]) < size:
        H, both = readout(h).squeeze(-2), torch.cat([G, columns], 1)
        moved = torch.baddbmm(_turned(both, power), both @ H.mT, G, alpha=-1)
        G, columns = torch.cat([moved[:, :m], G], 1), torch.cat([columns, moved[:, m:]], 1)
        h = torch.cat([h, h * power], 1)
        power = power * power
    return power, G, readout(h).squeeze(-2), columns


def _turned(x: Tensor, factor: Tensor) -> Tensor:
    """x [D, m, N] times factor [D, 1, N/2], a complex number a pair."""
    return column(_complex(x) * factor)


def _complex(x: Tensor) -> Tensor:
    """Undo `column`."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


class _Rows(torch.autograd.Function):
    """first [D, 1, N] and the power of `_powers` -> the rows first dA^(size i), i < count: [D, count, N].

    One row comes from the one before; what a gradient sums over the rows is one product.
    """

    @staticmethod
    def forward(ctx, first: Tensor, power: Tensor, G: Tensor, H: Tensor, count: int) -> Tensor:
        rows = first.new_empty(first.shape[0], count, first.shape[-1])
        rows[:, :1] = first
        for i in range(1, count):
            row = rows[:, i - 1 : i]
            rows[:, i : i + 1] = torch.baddbmm(_turned(row, power.conj()), row @ G.mT, H, alpha=-1)
        ctx.save_for_backward(power, G, H, rows, first)
        return rows

    @staticmethod
    def formula(first: Tensor, power: Tensor, G: Tensor, H: Tensor, count: int) -> Tensor:
        rows = [first]
        while len(rows) < count:
            row = rows[-1]
            rows.append(_turned(row, power.conj()) - (row @ G.mT) @ H)
        return torch.cat(rows, 1)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        power, G, H, rows, first = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of these are needed
            formula = partial(_Rows.formula, count=rows.shape[1])
            return *gradients(formula, (first, power, G, H), (grad,)), None
        grad = grad.clone(memory_format=torch.contiguous_format)
        for i in range(grad.shape[1] - 1, 0, -1):
            row = grad[:, i : i + 1]
            grad[:, i - 1 : i] += torch.baddbmm(_turned(row, power), row @ H.mT, G, alpha=-1)
        before, after = rows[:, :-1], grad[:, 1:]
        grad_power = (_complex(before) * _complex(after).conj()).sum(1, keepdim=True)
        grad_G, grad_H = -(after @ H.mT).mT @ before, -(before @ G.mT).mT @ after
        return grad[:, :1], grad_power, grad_G, grad_H, None


def unfold(C: Tensor, step: Discrete, length: int) -> Tensor:
    """Undo the original's folding, C (I - dA^length) for C. C [D, N/2] complex, in its own precision."""
    A = step.matrix()
    folding = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) - torch.linalg.matrix_power(A, length)
    row = torch.linalg.solve(folding, readout(C), left=False) / 2
    return torch.view_as_complex(row.squeeze(-2).unflatten(-1, (-1, 2)).contiguous()).conj().resolve_conj()


def response_to_inputs(u: Tensor, chunk: Chunk) -> Tensor:
    """The state after u [B, T, D] from nothing, T tokens a row (leading zeros do nothing) -> complex [B, D, N/2]."""
    u = u.permute(2, 0, 1).contiguous()  # [D, B, T]
    first = (u.shape[-1] - 1) % CHUNK + 1
    s = u[..., :first].contiguous() @ chunk.inputs[:, CHUNK - first :]
    whole = u[..., first:].unflatten(-1, (-1, CHUNK))  # [D, B, chunks, CHUNK]
    left = (whole.flatten(1, 2) @ chunk.inputs).unflatten(1, whole.shape[1:3])
    for left_by_chunk in left.unbind(2):
        s = s @ chunk.power + left_by_chunk
    return as_modes(s)


def response_to_state(
    s: Tensor, time: int, lengths: Tensor | None, step: Discrete, chunk: Chunk
) -> tuple[Tensor, Tensor]:
    """Compute the response to a state s [B, D, N/2] without further inputs.

    Returns y_l = 2 Re(C dA^(l+1) s), l < time [B, D, time], and the state after `time` tokens, or after each row's
    `lengths` [B]: whole chunks by dA^CHUNK, what remains by single steps.
    """
    s = column(s).transpose(0, 1)  # [D, B, N]
    outputs, after = [], s
    for start in range(0, time, CHUNK):
        outputs.append(s @ chunk.outputs[..., : time - start])
        if start + CHUNK <= time:
            s = s @ chunk.power
            after = s if lengths is None else torch.where((lengths >= start + CHUNK).unsqueeze(-1), s, after)
    after = as_modes(after)
    for t in range(time % CHUNK if lengths is None else min(time, CHUNK - 1)):
        stepped = step.advance(after)
        after = stepped if lengths is None else torch.where((lengths % CHUNK > t)[:, None, None], stepped, after)
    return torch.cat(outputs, -1).transpose(0, 1), after


def as_modes(s: Tensor) -> Tensor:
    """Real rows [D, B, N] -> complex [B, D, N/2], what `column` undoes."""
    return torch.view_as_complex(s.transpose(0, 1).unflatten(-1, (-1, 2)).contiguous())
