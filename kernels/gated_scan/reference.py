"""Linear recurrence with real gates: the reference implementation, step by step."""

import torch
from torch import Tensor

from ..common.dtypes import compute_dtype


def gated_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None = None, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t; sequences packed into one row each alone."""
    if cu_seqlens is not None:
        lengths = cu_seqlens.diff().tolist()
        states = [None] * len(lengths) if initial_state is None else initial_state.split(1)
        alone = [gated_scan(*text) for text in zip(a.split(lengths, 1), b.split(lengths, 1), states)]
        return torch.cat([h for h, _ in alone], 1), torch.cat([last for _, last in alone])
    dtype = compute_dtype(a, b, initial_state)
    batch, _, width = b.shape
    h = b.new_zeros(batch, width, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    states = []
    for a_t, b_t in zip(a.to(dtype).unbind(1), b.to(dtype).unbind(1)):
        h = a_t * h + b_t
        states.append(h)
    return (torch.stack(states, 1).to(b.dtype) if states else b), h
