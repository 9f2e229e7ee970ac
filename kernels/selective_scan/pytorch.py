"""Mamba's selective scan for a real A, vectorised over all but time, for devices without a Triton kernel."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import block_numbers
from ..common.dtypes import compute_dtype
from ..symbolic import varies
from ..transforms import apply, gradients
from .doubling import scan_by_doubling
from .heads import by_heads
from .inputs import Inputs
from .packed import text_by_text

# Fewest steps in a chunk: one state of a chunk is kept for the backward pass.
FEWEST_STEPS = 16


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
    x, delta, A = u.to(dtype), delta.to(dtype), A.to(dtype)
    groups = math.lcm(*(matrix.shape[1] for matrix in (B, C) if matrix.ndim == 4))
    B, C = (_time_first(matrix.to(dtype), groups) for matrix in (B, C))
    h = x.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state.to(dtype)
    # Time first, and modes before channels: what is equal for all channels is then one factor for a whole row.
    inputs, steps = (t.permute(2, 0, 1).contiguous() for t in (x, delta))
    # After the copy: traced, a softplus of permuted axes lies in memory otherwise than run.
    if delta_bias is not None:
        steps = steps + delta_bias.to(dtype)
    if delta_softplus:
        steps = F.softplus(steps)
    inputs, steps = (t.unflatten(-1, (groups, 1, -1)) for t in (inputs, steps))
    A, h = (t.mT.unflatten(-1, (groups, -1)).transpose(-2, -3) for t in (A, h))  # [(batch,) G, N, D / G]
    if varies(*u.shape):
        y, h = scan_by_doubling(inputs, steps, A, B, C, h)
    elif u.shape[-1] == 1:
        h = torch.exp(steps[0] * A) * h + (steps[0] * inputs[0]) * B[0]
        y = (C[0] * h).sum(-2).unsqueeze(0)
    else:
        y, h = apply(_Scan, inputs, steps, A, B, C, h)
    y = y.flatten(2).permute(1, 2, 0)
    h = h.transpose(-2, -3).flatten(-2).mT
    if D is not None:
        y = torch.addcmul(y, D.to(dtype).unsqueeze(-1), x)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype)
    return (y, h) if return_last_state else y


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
    before, u, step, A, B, C, D, z, dt_bias, _ = by_heads(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    u, step = u.to(dtype), step.to(dtype)  # [batch, H, P]
    B, C = (matrix.to(dtype).repeat_interleave(before.shape[1] // matrix.shape[1], 1) for matrix in (B, C))
    if dt_bias is not None:
        step = step + dt_bias.to(dtype)
    if dt_softplus:
        step = F.softplus(step)
    h = torch.addcmul(
        (step * u).unsqueeze(-1) * B.unsqueeze(2), torch.exp(step.unsqueeze(-1) * A.to(dtype)), before.to(dtype)
    )
    before.copy_(h)
    y = (h @ C.unsqueeze(-1)).squeeze(-1)
    if D is not None:
        y = torch.addcmul(y, D.to(dtype), u)
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.reshape(x.shape).to(x.dtype)


def _time_first(matrix: Tensor, groups: int) -> Tensor:
    """B or C in any of Mamba's layouts -> [L or 1, batch or 1, groups or 1, N, D / groups or 1]."""
    if matrix.ndim == 2:
        return matrix.mT.unflatten(-1, (groups, -1)).transpose(0, 1)[None, None]
    if matrix.ndim == 3:
        matrix = matrix.unsqueeze(1)
    elif matrix.shape[1] != groups:
        matrix = matrix.repeat_interleave(groups // matrix.shape[1], dim=1)
    return matrix.permute(3, 0, 1, 2).contiguous().unsqueeze(-1)


class _Scan(torch.autograd.Function):
    """inputs, steps [L, batch, G, 1, D / G], A, h [(batch,) G, N, D / G], B, C of `_time_first` -> (y, last state).

    The states of one chunk of time are held at once. The backward pass makes them again from the state before it.
    """

    @staticmethod
    def forward(
        ctx, inputs: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        L, size = inputs.shape[0], _chunk_size(h, inputs.shape[0])
        y = torch.empty_like(inputs.squeeze(-2))
        before = []
        for chunk in _chunks(L, size):
            before.append(h)
            _, states = _states(inputs[chunk], steps[chunk], A, _at(B, chunk), h)
            y[chunk] = _sum_modes(states, _at(C, chunk))
            h = states[-1].clone()
        ctx.save_for_backward(inputs, steps, A, B, C, *before)
        ctx.size = size
        return y, h

    @staticmethod
    def formula(inputs: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        decay, added = torch.exp(steps * A), (steps * inputs) * B
        states = []
        for t in range(inputs.shape[0]):
            h = decay[t] * h + added[t]
            states.append(h)
        return (C * torch.stack(states)).sum(-2), h

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_y, grad_h = grads
        inputs, steps, A, B, C, *before = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of these are needed
            return tuple(gradients(_Scan.formula, (inputs, steps, A, B, C, before[0]), (grad_y, grad_h)))
        grad_inputs, grad_steps = torch.empty_like(inputs), torch.empty_like(steps)
        grad_A, grad_B, grad_C = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
        grad_y = grad_y.contiguous().unsqueeze(-2)
        for chunk, h in reversed(list(zip(_chunks(inputs.shape[0], ctx.size), before))):
            u, delta, b, c = inputs[chunk], steps[chunk], _at(B, chunk), _at(C, chunk)
            decay, states = _states(u, delta, A, b, h)
            _at(grad_C, chunk).add_(_sum_channels(states, grad_y[chunk], c))
            # The gradient of h_t comes from y_t and from h_{t+1}.
            grad = c * grad_y[chunk]
            grad[-1] += grad_h
            for t in range(grad.shape[0] - 2, -1, -1):
                grad[t].addcmul_(decay[t + 1], grad[t + 1])
            grad_h = decay[0] * grad[0]
            _at(grad_B, chunk).add_(_sum_channels(grad, delta * u, b))
            grad_input = _sum_modes(grad, b).unsqueeze(-2)
            # decay_t = exp(delta_t A) multiplies the state before.
            grad_decay = decay.mul_(grad)
            grad_decay[0] *= h
            grad_decay[1:] *= states[:-1]
            grad_A += (grad_decay * delta).sum((0, 1))
            grad_steps[chunk] = (grad_decay.mul_(A)).sum(-2, keepdim=True).addcmul_(grad_input, u)
            grad_inputs[chunk] = grad_input * delta
        return grad_inputs, grad_steps, grad_A, grad_B, grad_C, grad_h


def _states(inputs: Tensor, steps: Tensor, A: Tensor, B: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """exp(delta_t A) and h_t for the steps of a chunk: each [steps, batch, G, N, D / G]."""
    decay = torch.exp(steps * A)
    states = (steps * inputs) * B
    for t in range(states.shape[0]):
        h = states[t].addcmul_(decay[t], h)
    return decay, states


def _sum_modes(states: Tensor, matrix: Tensor) -> Tensor:
    """sum_n matrix_n states_n: [steps, batch, G, D / G]."""
    if matrix.shape[-1] == 1:
        return (matrix.mT @ states).squeeze(-2)
    return (matrix * states).sum(-2)


def _sum_channels(states: Tensor, factor: Tensor, matrix: Tensor) -> Tensor:
    """The gradient of `matrix` in `_sum_modes` where `factor` [steps, batch, G, 1, D / G] is that of the result."""
    if matrix.shape[-1] == 1:
        return (states @ factor.mT).sum_to_size(matrix.shape)
    return (states * factor).sum_to_size(matrix.shape)


def _at(matrix: Tensor, chunk: slice) -> Tensor:
    """The steps of a chunk, or all of a matrix that is constant in time."""
    return matrix if matrix.shape[0] == 1 else matrix[chunk]


def _chunk_size(h: Tensor, L: int) -> int:
    return min(L, max(FEWEST_STEPS, block_numbers(h.device) // max(h.numel(), 1)))


def _chunks(L: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, L, size)]
