"""Causal convolution with a skip and a gate: the reference implementation, by the dense Toeplitz matrix."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.dtypes import compute_dtype


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
    """y_t = gate_t (sum_{s <= t} k_{t-s} u_s + d u_t + sum_p a_p u_t u_{t-1} ... u_{t-p+1}), for each sequence alone.

    `k_spectrum` and `precision` are for other implementations; they change nothing here.
    """
    dtype = compute_dtype(u, k, d_skip, gate, product_weights)
    texts = [u] if cu_seqlens is None else [u[..., start:end] for start, end in pairwise(cu_seqlens.tolist())]
    y = torch.cat([_convolve(text, k, d_skip, dtype) for text in texts], -1)
    if product_weights is not None:
        y = y + torch.cat([_products(text.to(dtype), product_weights.to(dtype)) for text in texts], -1)
    if gate is not None:
        y = y * gate
    return y.to(u.dtype)


def _convolve(u: Tensor, k: Tensor, d_skip: Tensor | None, dtype: torch.dtype) -> Tensor:
    L, taps = u.shape[-1], k.shape[-1]
    steps = torch.arange(L, device=u.device)
    lags = steps[:, None] - steps[None, :]  # [t, s]
    toeplitz = k.to(dtype)[:, lags.clamp(0, taps - 1)] * ((lags >= 0) & (lags < taps))  # [D, t, s]
    y = torch.einsum("dts,bds->bdt", toeplitz, u.to(dtype))
    return y if d_skip is None else y + d_skip.to(dtype).unsqueeze(-1) * u


def _products(u: Tensor, weights: Tensor) -> Tensor:
    """sum_p a_p u_t u_{t-1} ... u_{t-p+1} of the orders p = 2 .. P; u [B,D,L], weights [D,P-1]. Before u all is 0."""
    L = u.shape[-1]
    product, total = u, torch.zeros_like(u)
    for delay, weight in enumerate(weights.unbind(-1), start=1):
        product = product * F.pad(u, (delay, 0))[..., :L]
        total = total + weight.unsqueeze(-1) * product
    return total
