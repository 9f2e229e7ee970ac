"""Small state-space blocks that the tests run through the same claims."""

import torch

from firebolt_vl.cmm import S4, S4D, DecodeState, LiquidS4, Mamba

WIDTH = 4
MAKERS = {
    "s4": lambda **options: S4(WIDTH, 8, **options),
    "s4_truncated": lambda **options: S4(WIDTH, 8, kernel_taps=9, **options),
    "liquid": lambda **options: LiquidS4(WIDTH, 8, liquid_order=3, **options),
    "s4d": lambda **options: S4D(WIDTH, 8, **options),
    "mamba": lambda **options: Mamba(WIDTH, 5, **options),
}


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 0, **options) -> torch.nn.Module:
    """A block of width WIDTH, parameters drawn in float32 so that every dtype holds the same numbers."""
    torch.manual_seed(seed)
    return MAKERS[name](**options).to(dtype).eval()


def run_in_pieces(block, x, mask, pieces, state: DecodeState | None = None):
    """`prefill` over consecutive pieces of x [B, T, D], `step` for what they leave over -> (y, state).

    Steps take no mask, so with one the rest goes through one-token prefills.
    """
    outputs, start = [], 0
    for size in [*pieces, *[1] * (x.shape[1] - sum(pieces))]:
        part = slice(start, start + size)
        if mask is None and state is not None and size == 1:
            y, state = block.step(x[:, start], state)
            y = y.unsqueeze(1)
        else:
            y, state = block.prefill(x[:, part], None if mask is None else mask[:, part], state)
        outputs.append(y)
        start += size
    return torch.cat(outputs, 1), state
