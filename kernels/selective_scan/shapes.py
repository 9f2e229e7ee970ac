"""Division of a sequence into tiles for the Triton kernels, and the layout of their outputs."""

import torch
from torch import Tensor

# What a tile [steps, modes, channels] holds at most: steps, forward and backward, channels, and modes of all its
# channels together. With more channels fewer threads share the modes of one and add up their parts; with fewer
# there are more programs, whose waits hide each other.
FORWARD_STEPS, BACKWARD_STEPS = 8, 4
CHANNELS, MODES = 8, 1024
# The state before each so many steps is kept for the backward pass. A multiple of the steps of a tile.
KEPT = 16
WARP = 32


def power_of_two(size: int) -> int:
    """The one that holds `size`."""
    return 1 << (int(size) - 1).bit_length()


def forward_steps(N: int, L: int) -> int:
    """Steps of a tile of the forward pass."""
    return _steps(FORWARD_STEPS, N, L)


def backward_steps(N: int, L: int) -> int:
    """Steps of a tile of the backward pass."""
    return _steps(BACKWARD_STEPS, N, L)


def _steps(most: int, N: int, L: int) -> int:
    return 1 if L == 1 else max(2, min(most, most * MODES // power_of_two(N)))


def block_of_channels(N: int, channels: int) -> int:
    """Channels of a tile, of a group of so many."""
    return min(CHANNELS, power_of_two(channels), max(1, MODES // power_of_two(N)))


def warps_of(steps: int, N: int, channels: int, numbers: int) -> int:
    """Warps of a program whose threads have so many `numbers` of a tile each."""
    return min(16, max(1, steps * power_of_two(N) * channels // (WARP * numbers)))


def laid_out_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """New memory of the shape of x [batch, D, L], channels last where x has them last."""
    batch, width, L = x.shape
    if x.stride(1) == 1:
        return torch.empty(batch, L, width, dtype=dtype, device=x.device).mT
    return torch.empty(batch, width, L, dtype=dtype, device=x.device)
