"""Division of a sequence into tiles for the Triton kernels, and the layout of their outputs."""

import torch
from torch import Tensor

# What a tile [steps, modes, channels] holds at most: numbers, steps, and modes of all its channels together.
TILE = 2048
STEPS = 16
CHANNELS, MODES = 16, 128
# Up to so many modes a thread has all steps of one; beyond, half of the steps and of the numbers fit its registers.
FEW_MODES = 16


def power_of_two(size: int) -> int:
    """The one that holds `size`."""
    return 1 << (int(size) - 1).bit_length()


def block_of_steps(N: int, L: int) -> int:
    """Steps of a tile; the state before each such block is kept for the backward pass."""
    steps = STEPS if N <= FEW_MODES else STEPS // 2
    return 1 if L == 1 else max(2, min(steps, TILE // power_of_two(N)))


def block_of_channels(N: int, channels: int) -> int:
    """Channels of a tile, of a group of so many."""
    return min(CHANNELS, power_of_two(channels), max(1, MODES // power_of_two(N)))


def blocks_of_steps(u: Tensor, N: int, cu_seqlens: Tensor | None) -> int:
    """Count the blocks of all rows of u, or room for those of all sequences wherever the borders lie: the blocks of
    sequence i begin at number border // steps + i."""
    L, steps = u.shape[2], block_of_steps(N, u.shape[2])
    if cu_seqlens is None:
        return u.shape[0] * ((L + steps - 1) // steps)
    return L // steps + cu_seqlens.shape[0] - 1


def laid_out_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """New memory of the shape of x [batch, D, L], channels last where x has them last."""
    batch, width, L = x.shape
    if x.stride(1) == 1:
        return torch.empty(batch, L, width, dtype=dtype, device=x.device).mT
    return torch.empty(batch, width, L, dtype=dtype, device=x.device)
