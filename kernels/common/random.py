"""Counter-based random bits: the mask of a dropout is a function of (seed, element index) alone.

Integer arithmetic only, modulo 2^64, so that a Triton kernel repeats it bit for bit, in any order and any number of
times (the backward pass draws the same mask again instead of keeping it). The mixing function is SplitMix64's
(Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import torch
from torch import Tensor

# As signed 64-bit numbers, since torch has no uint64 arithmetic; products wrap around alike.
GOLDEN_RATIO = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64
DRAW_BITS = 24


def _shift_right(bits: Tensor, n: int) -> Tensor:
    """Logical shift: zeros come in from the left (torch's own shift copies the sign)."""
    return (bits >> n) & (2 ** (64 - n) - 1)


def mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of the 64-bit integers (int64); every input bit moves every output bit."""
    bits = (bits ^ _shift_right(bits, 30)) * MIX_1
    bits = (bits ^ _shift_right(bits, 27)) * MIX_2
    return bits ^ _shift_right(bits, 31)


def random_bits(seed: Tensor, index: Tensor) -> Tensor:
    """24 uniform bits (int64, 0 .. 2^24 - 1) for every element index (int64) of the stream `seed` (int64, one element).

    bits = mix(mix(seed) + (index + 1) * golden_ratio) >> 40.  The seed is mixed first: without it, streams of
    neighbouring seeds would be shifted copies of each other.
    """
    return _shift_right(mix(mix(seed.reshape(())) + (index + 1) * GOLDEN_RATIO), 64 - DRAW_BITS)


def new_seed(device: torch.device) -> Tensor:
    """A seed from torch's own generator of `device`: it follows `torch.manual_seed` and checkpointing's saved state."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device)


def dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """x / (1 - p) where kept, else 0; element i (in C order) is kept iff random_bits(seed, i) >= round(p 2^24)."""
    index = torch.arange(x.numel(), device=x.device).view(x.shape)
    keep = random_bits(seed, index) >= round(p * 2**DRAW_BITS)
    return torch.where(keep, x / (1 - p), 0)
