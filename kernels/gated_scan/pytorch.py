"""Linear recurrence with real gates, vectorised over all but time, for devices without a Triton kernel."""

import math

import torch
from torch import Tensor

from ..common.dtypes import compute_dtype
from ..transforms import apply, gradients

# Most numbers of a step, and fewest steps, with which pieces side by side are faster: the calls of operators are then
# what takes the time. Measured on one thread of an AMD EPYC.
MOST_NUMBERS, FEWEST_STEPS = 1024, 64


def gated_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None = None, *, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t; sequences packed into one row each alone."""
    dtype = compute_dtype(a, b, initial_state)
    rows = b.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    h = b.new_zeros(rows, b.shape[2], dtype=dtype) if initial_state is None else initial_state.to(dtype)
    a, x = a.to(dtype), b.to(dtype)
    if cu_seqlens is None:
        states, h = _scan(a, x, h)
    else:
        lengths = cu_seqlens.diff().tolist()
        alone = [_scan(*text) for text in zip(a.split(lengths, 1), x.split(lengths, 1), h.split(1))]
        states, h = torch.cat([states for states, _ in alone], 1), torch.cat([last for _, last in alone])
    return states.to(b.dtype), h


def _scan(a: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    if b.shape[1] == 0:
        return b, h
    if b.shape[1] == 1:
        h = torch.addcmul(b[:, 0], a[:, 0], h)
        return h.unsqueeze(1), h
    return apply(_Scan, a, b, h)


class _Scan(torch.autograd.Function):
    """a, b [B, T, D], h [B, D] -> (states [B, T, D], the last of them)."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        states = _states(a, b, h)
        ctx.save_for_backward(a, b, h, states)
        return states, states[:, -1].clone()

    @staticmethod
    def formula(a: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        states = []
        for a_t, b_t in zip(a.unbind(1), b.unbind(1)):
            h = a_t * h + b_t
            states.append(h)
        return torch.stack(states, 1), h

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, b, h, states = ctx.saved_tensors
        if torch.is_grad_enabled():  # gradients of these are needed
            return tuple(gradients(_Scan.formula, (a, b, h), grads))
        grad_states, grad_last = grads
        # e_t = a_t db_t, with db_t = dh_t + e_{t+1}: the same recurrence, backwards in time.
        all_e = _states(a.flip(1), (a * grad_states).flip(1), grad_last).flip(1)
        grad_b = grad_states + torch.cat([all_e[:, 1:], grad_last.unsqueeze(1)], 1)
        grad_a = grad_b * torch.cat([h.unsqueeze(1), states[:, :-1]], 1)
        return grad_a, grad_b, all_e[:, 0]


def pieces_of(numbers: int, T: int) -> int:
    """Count the pieces of time that run beside each other, for so many numbers of a step.

    Pieces make calls fewer and larger, and everything is done twice: once to know what a piece does to a state.
    """
    return math.isqrt(T) if numbers <= MOST_NUMBERS and T >= FEWEST_STEPS else 1


def _states(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """All states, those of pieces of equal length side by side, and then of the steps that are left."""
    pieces = pieces_of(h.numel(), b.shape[1])
    if pieces == 1:
        return _step_by_step(a, b, h)
    whole = b.shape[1] - b.shape[1] % pieces
    gates, inputs = (x[:, :whole].unflatten(1, (pieces, -1)) for x in (a, b))
    products, sums = _totals(gates, inputs)
    before = [h]
    for product, total in zip(products.unbind(1), sums.unbind(1)):
        # An infinite product makes nothing of 0, as its factors would.
        before.append(torch.where(before[-1] == 0, total, torch.addcmul(total, product, before[-1])))
    states = _step_by_step(gates, inputs, torch.stack(before[:-1], 1)).flatten(1, 2)
    return torch.cat([states, _step_by_step(a[:, whole:], b[:, whole:], before[-1])], 1)


def _totals(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what the steps [..., T, D] do to a state, h -> product h + sum: both [..., D]."""
    total = torch.zeros_like(b[..., 0, :])
    for a_t, b_t in zip(a.unbind(-2), b.unbind(-2)):
        total.mul_(a_t).add_(b_t)
    return a.prod(-2), total


def _step_by_step(a: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """The states of steps [..., T, D] one after the other, from h [..., D]."""
    states = b.clone(memory_format=torch.contiguous_format)
    for a_t, state in zip(a.unbind(-2), states.unbind(-2)):
        h = state.addcmul_(a_t, h)
    return states
