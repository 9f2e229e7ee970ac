"""Linear recurrence with diagonal complex modes: the reference implementation, step by step."""

import torch
from torch import Tensor

from ..common.dtypes import complex_dtype, compute_dtype


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
    if cu_seqlens is not None:
        texts = u.split(cu_seqlens.diff().tolist(), -1)
        states = [None] * len(texts) if h0 is None else h0.split(1)
        alone = [diagonal_scan(text, z, b, c, d_skip, state) for text, state in zip(texts, states)]
        return torch.cat([y for y, _ in alone], -1), torch.cat([h for _, h in alone])
    dtype = compute_dtype(u, z, b, c, d_skip, h0)
    z, b, c = (mode.to(complex_dtype(dtype)) for mode in (z, b, c))
    x = u.to(dtype)
    h = z.new_zeros(u.shape[0], *z.shape) if h0 is None else h0.to(z.dtype)
    outputs = []
    for x_t in x.unbind(-1):
        h = z * h + b * x_t.unsqueeze(-1)  # [B, D, N]
        outputs.append(2 * (c * h).sum(-1).real)
    y = torch.stack(outputs, -1) if outputs else x
    if d_skip is not None:
        y = y + d_skip.to(dtype).unsqueeze(-1) * x
    return y.to(u.dtype), h
