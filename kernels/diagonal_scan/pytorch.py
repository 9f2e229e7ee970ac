"""Diagonal recurrence by chunks of time, as real matrix multiplications: for devices without a Triton kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import block_numbers
from ..common.dtypes import complex_dtype, compute_dtype

# Steps in a chunk: where the work for its tables and that for the states between chunks balance.
CHUNK = 32


def diagonal_scan(
    u: Tensor,
    z: Tensor,
    b: Tensor,
    c: Tensor,
    d_skip: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h_t = z h_{t-1} + b u_t,  y_t = 2 Re sum_n c_n h_{t,n} + d u_t; sequences packed into one row each alone."""
    dtype = compute_dtype(u, z, b, c, d_skip, h0)
    z, b, c = (mode.to(complex_dtype(dtype)) for mode in (z, b, c))
    x = u.to(dtype)
    rows = u.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    h = z.new_zeros(rows, *z.shape) if h0 is None else h0.to(z.dtype)
    if cu_seqlens is None:
        y, h = _scan(x, z, b, c, h)
    else:
        texts = x.split(cu_seqlens.diff().tolist(), -1)
        alone = [_scan(text, z, b, c, state) for text, state in zip(texts, h.split(1))]
        y, h = torch.cat([y for y, _ in alone], -1), torch.cat([h for _, h in alone])
    if d_skip is not None:
        y = torch.addcmul(y, d_skip.to(dtype).unsqueeze(-1), x)
    return y.to(u.dtype), h


def steps_are_faster(h: Tensor, L: int) -> bool:
    """Tell whether L single steps are faster than the tables that chunks need, for a state h [B, D, N].

    Seconds measured on one thread of an AMD EPYC: a call has a price, and so has each number.
    """
    batch, modes = h.shape[0], h[0].numel()
    steps = L * (2e-5 + 1.5e-9 * batch * modes)
    chunks = 6e-4 + 2.5e-7 * modes + 5e-10 * batch * modes * L
    return L == 1 or steps < chunks


def _scan(u: Tensor, z: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    if u.shape[-1] == 0:
        return u, h
    return (_scan_steps if steps_are_faster(h, u.shape[-1]) else _scan_chunks)(u, z, b, c, h)


def _scan_steps(u: Tensor, z: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """One step after the other, nothing prepared: for decoding and short pieces."""
    outputs = []
    for u_t in u.split(1, -1):
        h = torch.addcmul(b * u_t, z, h)
        outputs.append(2 * (c * h).sum(-1, keepdim=True).real)
    return torch.cat(outputs, -1), h


def _scan_chunks(u: Tensor, z: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks of `size` steps and a last, shorter one, for a block of channels at a time."""
    batch, width, L = u.shape
    size = min(L, CHUNK)
    block = max(1, block_numbers(u.device) // max(2 * z.shape[-1] * size, batch * L))
    outputs, states = [], []
    for channels in (slice(start, start + block) for start in range(0, width, block)):
        powers, tables = _tables(z[channels], b[channels], c[channels], size)
        state = h[:, channels].transpose(0, 1)  # [D, B, N]
        parts = []
        for inputs in u[:, channels].split([L - L % size, L % size], -1):
            if steps := min(size, inputs.shape[-1]):
                y, state = _run_chunks(inputs, powers[..., steps], b[channels], tables, steps, state)
                parts.append(y)
        outputs.append(torch.cat(parts, -1))
        states.append(state.transpose(0, 1))
    return torch.cat(outputs, 1), torch.cat(states, 1)


def _tables(z: Tensor, b: Tensor, c: Tensor, size: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Compute the tables of one chunk. With t, s = 0 .. size-1, and h the state before the chunk,

        y_t = sum_{s <= t} k_{t-s} u_s + 2 Re sum_n c_n z_n^{t+1} h_n        with k_l = 2 Re sum_n c_n b_n z_n^l
        h'  = z^size h + b sum_s z^{size-1-s} u_s

    Returns the powers z^p in complex128 [D, N, size + 1], and the tables: the Toeplitz matrix [D, size - 1 - s, t], the
    powers of the second line [D, 2N, size - 1 - s] and the factors of h in the first [D, 2N, t]; 2N are real and
    imaginary parts. A shorter chunk takes a part of each.
    """
    # A running product, in float64, costs no more than logarithms and exponentials and takes z = 0.
    powers = z.to(torch.complex128).unsqueeze(-1).expand(*z.shape, size)
    powers = torch.cat([torch.ones_like(powers[..., :1]), powers], -1).cumprod(-1)
    rounded = powers.to(z.dtype)
    to_state = torch.cat([rounded[..., :size].real, rounded[..., :size].imag], 1)
    response = 2 * c.unsqueeze(-1) * rounded[..., 1:]
    from_state = torch.cat([response.real, -response.imag], 1)  # Re(a h) = Re a Re h - Im a Im h
    b = torch.cat([b.real, b.imag], -1)
    at_zero = 2 * (torch.cat([c.real, -c.imag], -1) * b).sum(-1, keepdim=True)
    taps = torch.cat([at_zero, (b.unsqueeze(-2) @ from_state[..., : size - 1]).squeeze(-2)], -1)
    # A copy, since a product with overlapping rows would go matrix by matrix.
    toeplitz = F.pad(taps, (size - 1, 0)).unfold(-1, size, 1).contiguous()
    return powers, (toeplitz, to_state, from_state)


def _run_chunks(
    u: Tensor, decay: Tensor, b: Tensor, tables: tuple[Tensor, Tensor, Tensor], size: int, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Chunks of exactly `size` steps: u [B, D, chunks size], decay = z^size and b [D, N], state [D, B, N]."""
    toeplitz, to_state, from_state = tables
    if size < toeplitz.shape[-1]:
        toeplitz, to_state, from_state = toeplitz[:, -size:, :size], to_state[..., :size], from_state[..., :size]
    batch, width, L = u.shape
    # From chunk to chunk the state is multiplied by the same number, whose rounding would add up: float64 there.
    x = u.unflatten(-1, (-1, size)).flip(-1).permute(1, 2, 0, 3).flatten(1, 2)  # [D, (chunk, batch), s reversed]
    added = b[:, None] * torch.complex(*(x @ to_state.mT).chunk(2, -1))  # [D, (chunk, batch), N]
    exact, decay = state.to(decay.dtype), decay[:, None]
    before = []
    for added_by_chunk in added.to(decay.dtype).split(batch, 1):
        before.append(exact)
        exact = torch.addcmul(added_by_chunk, decay, exact)
    before = torch.cat(before, 1).to(state.dtype)  # [D, (chunk, batch), N]
    y = torch.baddbmm(x @ toeplitz, torch.cat([before.real, before.imag], -1), from_state)
    return y.unflatten(1, (-1, batch)).permute(2, 0, 1, 3).reshape(batch, width, L), exact.to(state.dtype)
