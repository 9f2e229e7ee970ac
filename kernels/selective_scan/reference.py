"""Mamba's selective scan: the reference implementation, step by step (real and complex A); and one step in place."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..common.dtypes import complex_dtype, compute_dtype
from .inputs import Inputs
from .packed import text_by_text


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,  y_t = (C_t . h_t + D u_t) silu(z_t)."""
    if cu_seqlens is not None:
        inputs = Inputs(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, cu_seqlens)
        return text_by_text(selective_scan, inputs, cu_seqlens, return_last_state)
    dtype = compute_dtype(u, delta, A, B, C, D, z, delta_bias, initial_state)
    batch, _, L = u.shape
    x, delta, A = u.to(dtype), delta.to(dtype), A.to(complex_dtype(dtype) if A.is_complex() else dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype).unsqueeze(-1)
    if delta_softplus:
        delta = F.softplus(delta)
    B, C = (_per_step(matrix, A, batch, L) for matrix in (B, C))
    h = A.new_zeros(batch, *A.shape) if initial_state is None else initial_state.to(A.dtype)
    outputs = []
    for t in range(L):
        step = delta[:, :, t, None]  # [batch, D, 1]
        h = torch.exp(step * A) * h + step * B[..., t] * x[:, :, t, None]  # [batch, D, N]
        y_t = (C[..., t] * h).sum(-1)
        outputs.append(2 * y_t.real if A.is_complex() else y_t)
    y = torch.stack(outputs, -1)
    if D is not None:
        y = y + D.to(dtype).unsqueeze(-1) * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, h) if return_last_state else y


def _per_step(matrix: Tensor, A: Tensor, batch: int, L: int) -> Tensor:
    """B or C in any of Mamba's layouts -> [batch, D, N, L], in the dtype of A.

    [D, N] is constant in time; [batch, N, L] serves all channels; in [batch, groups, N, L] channel d takes group
    d // (D / groups). With a complex A a varying matrix is real, of length 2 L: pairs of real and imaginary part.
    """
    width, N = A.shape
    if matrix.ndim == 2:
        return matrix.to(A.dtype)[None, :, :, None].expand(batch, width, N, L)
    if A.is_complex():
        matrix = torch.view_as_complex(matrix.to(A.real.dtype).unflatten(-1, (L, 2)).contiguous())
    matrix = matrix.to(A.dtype)
    if matrix.ndim == 3:
        matrix = matrix.unsqueeze(1)
    return matrix.repeat_interleave(width // matrix.shape[1], dim=1)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """h <- exp(dt A) h + dt B x in place,  y = (C . h + D x) silu(z)."""
    dtype = compute_dtype(state, x, dt, A, B, C, D, z, dt_bias)
    B, C = (_per_channel(matrix.to(dtype), state) for matrix in (B, C))
    u, step = x.to(dtype), dt.to(dtype)
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    if dt_softplus:
        step = F.softplus(step)
    step = step.unsqueeze(-1)
    h = torch.exp(step * A.to(dtype)) * state.to(dtype) + step * B * u.unsqueeze(-1)
    state.copy_(h)
    y = (C * h).sum(-1)
    if D is not None:
        y = y + D.to(dtype) * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype)


def _per_channel(matrix: Tensor, state: Tensor) -> Tensor:
    """B or C, [batch, N] or [batch, groups, N] -> [batch, D, N], or with heads [batch, H, 1, N]."""
    if matrix.ndim == 2:
        matrix = matrix.unsqueeze(1)
    matrix = matrix.repeat_interleave(state.shape[1] // matrix.shape[1], dim=1)
    return matrix.unsqueeze(2) if state.ndim == 4 else matrix
