"""Causal convolution by three exact algorithms, for devices without a Triton kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import block_numbers
from ..common.dtypes import compute_dtype
from ..symbolic import power_of_two, varies
from ..transforms import apply, gradients
from .choice import choose_algorithm

# Steps in a chunk of the chunked algorithm.
CHUNK = 32


def fft_conv(
    u: Tensor,
    k: Tensor,
    d_skip: Tensor | None = None,
    *,
    gate: Tensor | None = None,
    k_spectrum: Tensor | None = None,
    precision: str = "accurate",
    cu_seqlens: Tensor | None = None,
    product_weights: Tensor | None = None,
) -> Tensor:
    """y_t = gate_t (sum_{s <= t} k_{t-s} u_s + d u_t + sum_p a_p u_t u_{t-1} ... u_{t-p+1}).

    The convolution is by the algorithm that `choose_algorithm` names. Everything is computed in float32 or wider,
    whatever `precision` allows. Packed sequences are convolved one by one.
    """
    dtype = compute_dtype(u, k, d_skip, gate, k_spectrum, product_weights)
    x = u.to(dtype)
    weights = None if product_weights is None else product_weights.to(dtype)
    if k_spectrum is not None:
        size = 2 * (k_spectrum.shape[-1] - 1)
        spectrum = k_spectrum if d_skip is None else k_spectrum + d_skip.to(dtype).unsqueeze(-1)
        y = torch.fft.irfft(torch.fft.rfft(x, n=size) * spectrum, n=size)[..., : u.shape[-1]]
        y = _with_products(y, x, weights)
    else:
        k = (k if varies(u.shape[-1]) else k[:, : u.shape[-1]]).to(dtype)
        if d_skip is not None:
            # The skip is one more weight at lag 0.
            k = torch.cat([k[:, :1] + d_skip.to(dtype).unsqueeze(-1), k[:, 1:]], -1)
        if cu_seqlens is None:
            y = _convolve(x, k, weights)
        else:
            # `split`, so that the gradients of the sequences are put side by side, not each among zeros.
            texts = x.split(cu_seqlens.diff().tolist(), -1)
            y = torch.cat([_convolve(text, k[:, : text.shape[-1]], weights) for text in texts if text.shape[-1]], -1)
    if gate is not None:
        y = y * gate
    return y.to(u.dtype)


def _convolve(u: Tensor, k: Tensor, weights: Tensor | None) -> Tensor:
    batch, width, L = u.shape
    if varies(batch, L):
        y = _in_one_block(u, k)
    else:
        y = ALGORITHMS[choose_algorithm(L, width, batch, u.dtype, u.device)](u, k)
    return _with_products(y, u, weights)


def _with_products(y: Tensor, u: Tensor, weights: Tensor | None) -> Tensor:
    """y + sum_p a_p u_t u_{t-1} ... u_{t-p+1} of one text u [B,D,L]; weights [D,P-1], None: y."""
    if weights is None:
        return y
    product = u
    for delay, weight in enumerate(weights.unsqueeze(-1).unbind(1), start=1):
        product = product * _delayed(u, delay if varies(u.shape[-1]) else min(delay, u.shape[-1]))
        y = torch.addcmul(y, product, weight)
    return y


def _delayed(u: Tensor, steps: int) -> Tensor:
    """u [B,D,L] `steps` later, zeros before; it lies in memory as u does, with time or with channels last."""
    if u.stride(1) == 1:
        return F.pad(u.mT, (0, 0, steps, -steps)).mT
    return F.pad(u, (steps, -steps))


def convolve_direct(u: Tensor, k: Tensor) -> Tensor:
    """u [B,D,L], k [D,K] -> [B,D,L], tap by tap: a grouped convolution. What comes later in a row is never touched."""
    return apply(_InTime, u, k, _direct)


def convolve_chunked(u: Tensor, k: Tensor) -> Tensor:
    """u [B,D,L], k [D,K] -> [B,D,L] as products of Toeplitz blocks with chunks of time.

    What comes later in a row is multiplied by zeros: no finite value there changes a bit of what comes before.
    """
    return apply(_InTime, u, k, _chunked)


def convolve_fft(u: Tensor, k: Tensor) -> Tensor:
    """u [B,D,L], k [D,K] -> [B,D,L] as a product of spectra, long enough that nothing wraps around."""
    return apply(_InFrequency, u, k)


ALGORITHMS = {"direct": convolve_direct, "chunked": convolve_chunked, "fft": convolve_fft}


class _InTime(torch.autograd.Function):
    """A causal convolution whose gradients are causal convolutions too, of reversed sequences."""

    @staticmethod
    def forward(ctx, u: Tensor, k: Tensor, convolve) -> Tensor:
        ctx.save_for_backward(u, k)
        ctx.convolve = convolve
        return convolve(u, k)

    @staticmethod
    def formula(u: Tensor, k: Tensor, convolve) -> Tensor:
        return _direct_block(u, k)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,), (u, k) = grads, ctx.saved_tensors
        batch, width, L = u.shape
        reverse = grad.flip(-1)
        grad_u = grad_k = None
        if ctx.needs_input_grad[0]:
            grad_u = _InTime.apply(reverse, k, ctx.convolve).flip(-1)
        if ctx.needs_input_grad[1]:
            # sum_t grad_t u_{t-s} is the convolution of the reversed gradient with u, read at L - 1 - s.
            rows = reverse.reshape(1, batch * width, L)
            lags = _InTime.apply(rows, u.reshape(batch * width, L), ctx.convolve)
            grad_k = lags.view(batch, width, L).sum(0).flip(-1)[:, : k.shape[-1]]
        return grad_u, grad_k, None


def _direct(u: Tensor, k: Tensor) -> Tensor:
    """Convolve by blocks of at most CHUNK taps: a grouped convolution adds products one by one and rounds each."""
    u, taps = _by_time(u), k.shape[-1]
    size = -(-taps // -(-taps // CHUNK))
    y = _direct_block(u, k[:, :size])
    for start in range(size, taps, size):
        y[..., start:] += _direct_block(u[..., :-start], k[:, start : start + size])
    return y


def _direct_block(u: Tensor, k: Tensor) -> Tensor:
    width, taps = k.shape
    return F.conv1d(F.pad(u, (taps - 1, 0)), k.flip(-1).unsqueeze(1), groups=width)


def _chunked(u: Tensor, k: Tensor) -> Tensor:
    batch, _, L = u.shape
    if L <= CHUNK:
        return _one_chunk(u, k)
    size = CHUNK
    chunks = -(-L // size)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    for channels in _channel_blocks(u, size * max(size, chunks * batch)):
        # Rows (chunk, batch), so that B = 1 too gives dense products: [channels, chunks * batch, size], time reversed.
        x = F.pad(u[:, channels], (0, chunks * size - L)).unflatten(-1, (chunks, size)).flip(-1)
        x = x.permute(1, 2, 0, 3).flatten(1, 2)
        # At size - 1 + l lies lag l; zeros stand for lags before 0 and after the last tap.
        lags = F.pad(k[channels], (size - 1, (chunks + 1) * size - k.shape[-1]))
        out = torch.zeros_like(x)
        for m in range(min(chunks, -(-(k.shape[-1] - 1) // size) + 1)):
            # toeplitz[s, t] = k[m size + t - s], with s reversed as in x: lags at m size + s + t.
            toeplitz = lags[:, m * size : (m + 2) * size - 1].unfold(-1, size, 1).contiguous()
            out[:, m * batch :].baddbmm_(x[:, : (chunks - m) * batch], toeplitz)
        y[:, channels] = out.unflatten(1, (chunks, batch)).permute(2, 0, 1, 3).flatten(2)[..., :L]
    return y


def _one_chunk(u: Tensor, k: Tensor) -> Tensor:
    """`_chunked` of no more than a chunk: one Toeplitz block a channel."""
    batch, _, L = u.shape
    u = _by_time(u)
    y = torch.empty_like(u)
    for channels in _channel_blocks(u, L * max(L, batch)):
        # toeplitz[s, t] = k[t - s], with s reversed; zeros stand for lags before 0.
        toeplitz = F.pad(k[channels], (L - 1, L - k.shape[-1])).unfold(-1, L, 1)
        x = u[:, channels].flip(-1)
        if batch == 1:  # a row times a matrix: faster term by term
            y[:, channels] = (x.unsqueeze(-1) * toeplitz).sum(-2)
        else:
            y[:, channels] = (x.transpose(0, 1) @ toeplitz.contiguous()).transpose(0, 1)
    return y


def _by_time(u: Tensor) -> Tensor:
    """u [B,D,L], contiguous. Where channels are last, row by row: a matrix is turned by tiles, a batch of them number
    by number, in three times the time."""
    if u.stride(1) != 1:
        return u.contiguous()
    turned = torch.empty_like(u, memory_format=torch.contiguous_format)
    for row, source in zip(turned, u):
        row.copy_(source)
    return turned


class _InFrequency(torch.autograd.Function):
    """Spectra are made again in the backward pass: that costs less than keeping them.

    What comes out lies in memory as what went in: channels last, if the model has them there.
    """

    @staticmethod
    def forward(ctx, u: Tensor, k: Tensor) -> Tensor:
        ctx.save_for_backward(u, k)
        batch, _, L = u.shape
        size = fast_size(L + k.shape[-1] - 1)
        y = torch.empty_like(u)
        for channels in _channel_blocks(u, batch * size):
            spectrum = torch.fft.rfft(_read(u, channels), n=size).mul_(torch.fft.rfft(k[channels], n=size))
            _write(y, channels, torch.fft.irfft(spectrum, n=size)[..., :L])
        return y

    @staticmethod
    def formula(u: Tensor, k: Tensor) -> Tensor:
        return _in_one_block(u, k)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (u, k) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of these are needed
            return tuple(gradients(_InFrequency.formula, (u, k), (grad,)))
        (batch, _, L), taps = u.shape, k.shape[-1]
        size = fast_size(L + taps - 1)
        grad_u = torch.empty_like(u) if ctx.needs_input_grad[0] else None
        grad_k = torch.empty_like(k, memory_format=torch.contiguous_format) if ctx.needs_input_grad[1] else None
        for channels in _channel_blocks(u, batch * size):
            # Correlations with k and u: the conjugates of their spectra.
            spectrum = torch.fft.rfft(_read(grad, channels), n=size)
            if grad_k is not None:
                product = (spectrum * torch.fft.rfft(_read(u, channels), n=size).conj()).sum(0)
                grad_k[channels] = torch.fft.irfft(product, n=size)[..., :taps]
            if grad_u is not None:
                product = spectrum.mul_(torch.fft.rfft(k[channels], n=size).conj())
                _write(grad_u, channels, torch.fft.irfft(product, n=size)[..., :L])
        return grad_u, grad_k


def _in_one_block(u: Tensor, k: Tensor) -> Tensor:
    """The product of spectra for all channels at once, of any sizes, open ones too."""
    least = u.shape[-1] + k.shape[-1] - 1
    size = power_of_two(least) if varies(least) else fast_size(least)
    return torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(k, n=size), n=size)[..., : u.shape[-1]]


def _read(u: Tensor, channels: slice) -> Tensor:
    """u[:, channels]. Where channels are last in memory, by way of a small copy: a transform reads along time, whose
    strides, powers of two, would meet in the same few lines of a cache."""
    return u[:, channels].mT.contiguous().mT if u.stride(1) == 1 else u[:, channels]


def _write(y: Tensor, channels: slice, part: Tensor) -> None:
    """y[:, channels] = part, likewise."""
    y[:, channels] = part.mT.contiguous().mT if y.stride(1) == 1 else part


def fast_size(at_least: int) -> int:
    """The smallest even number from `at_least` on whose prime factors are 2, 3 and 5: sizes that an FFT likes."""
    best = 2 ** max(1, (at_least - 1).bit_length())
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            rest = -(-at_least // threes)
            best = min(best, threes * 2 ** max(1, (rest - 1).bit_length()))
            threes *= 3
        fives *= 5
    return best


def _channel_blocks(u: Tensor, numbers: int) -> list[slice]:
    """Slices that cover the channels of u [B,D,L], for arrays with `numbers` a channel."""
    step = max(1, block_numbers(u.device) // numbers)
    return [slice(start, start + step) for start in range(0, u.shape[1], step)]
