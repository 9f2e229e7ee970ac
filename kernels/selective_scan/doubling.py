"""A selective scan of any number of steps without a loop over them, for exports that leave that number open."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..symbolic import power_of_two


def scan_by_doubling(
    inputs: Tensor, steps: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t and y_t = C_t . h_t, for all t: (y, last state).

    After m doublings each step holds what the 2^m steps up to it make of nothing, and their decay: both of steps t and
    t - 2^m give those of twice as many. log2 of the most steps passes over all states.
    inputs, steps [L, batch, G, 1, D / G], A, h [(batch,) G, N, D / G], B, C [L or 1, batch or 1, G, N, D / G or 1].
    """
    decay = torch.exp(steps * A)
    states = (steps * inputs) * B
    first = torch.arange(inputs.shape[0], device=inputs.device) == 0  # a slice would ask how many are left
    states = torch.where(first.view(-1, *[1] * (decay.ndim - 1)), decay * h + states, states)
    reach, longest = 1, power_of_two(inputs.shape[0])
    while reach < longest:
        states, decay = states + decay * _earlier(states, reach), decay * _earlier(decay, reach)
        reach *= 2
    return (C * states).sum(-2), states[-1]


def _earlier(x: Tensor, steps: int) -> Tensor:
    """x_{t - steps}, 0 where there is none."""
    return F.pad(x, (0, 0) * (x.ndim - 1) + (steps, 0))[:-steps]
