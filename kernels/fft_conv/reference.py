"""Causal convolution with a skip: the definition, by the dense Toeplitz matrix."""

import torch
from torch import Tensor

from ..common.dtypes import compute_dtype


def fft_conv(u: Tensor, k: Tensor, d_skip: Tensor | None = None, *, k_spectrum: Tensor | None = None) -> Tensor:
    """y_t = sum_{s <= t} k_{t-s} u_s + d u_t.  `k_spectrum` is a short cut for other implementations; not used here."""
    dtype = compute_dtype(u, k, d_skip)
    L, taps = u.shape[-1], k.shape[-1]
    steps = torch.arange(L, device=u.device)
    lags = steps[:, None] - steps[None, :]  # [t, s]
    toeplitz = k.to(dtype)[:, lags.clamp(0, taps - 1)] * ((lags >= 0) & (lags < taps))  # [D, t, s]
    y = torch.einsum("dts,bds->bdt", toeplitz, u.to(dtype))
    if d_skip is not None:
        y = y + d_skip.to(dtype).unsqueeze(-1) * u
    return y.to(u.dtype)
