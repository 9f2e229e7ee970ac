"""Vandermonde and Cauchy products with conjugate pairs: the reference implementations."""

import torch
from torch import Tensor

from ..common.dtypes import complex_dtype, compute_dtype


def vandermonde(c: Tensor, log_z: Tensor, L: int) -> Tensor:
    """K[l] = 2 Re sum_n c_n z_n^l, for l < L."""
    dtype = compute_dtype(c, log_z)
    c, log_z = c.to(complex_dtype(dtype)), log_z.to(complex_dtype(dtype))
    lags = torch.arange(L, device=log_z.device, dtype=dtype)
    powers = torch.exp(log_z.unsqueeze(-1) * lags)  # [..., N, L]
    return 2 * (c.unsqueeze(-1) * powers).sum(-2).real


def cauchy(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """sum_n v_n / (z - w_n) + conj(v_n) / (z - conj w_n)."""
    v, w = v.unsqueeze(-1), w.unsqueeze(-1)  # [..., N, 1] against z [Lz]
    return (v / (z - w) + v.conj() / (z - w.conj())).sum(-2)
