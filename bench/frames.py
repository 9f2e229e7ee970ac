"""Benchmark of many frames through the modulator: `python -m firebolt_vl.bench.frames [FRAMES]...` prints a table.

At full size, five grids a frame: what a frame costs to take in, alone or after all others, what a question of 32 tokens
and a generated token cost with so many frames, and the memory of the state.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cmm import CMMConfig, CrossModalModulator
from ..cmm.positions import default_boxes
from ..files.tables import markdown_table
from .kernels import device_name
from .timing import Run, clock_name, quantile, time_in_turns

FRAMES = (1, 4, 16, 64)
VIEWS, QUESTION = 5, 32


@dataclass
class Row:
    """Medians in milliseconds, and bytes of the state's grids."""

    frames: int
    encode_ms: float
    add_ms: float
    question_ms: float
    token_ms: float
    state_bytes: int


def inputs_of(frames: int, width: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random grids of frames a second apart, as arguments of a connector."""
    generator = torch.Generator().manual_seed(frames)
    return {
        "grids": torch.randn(1, frames * VIEWS, width, generator=generator).to(dtype),
        "grid_boxes": default_boxes(VIEWS).repeat(frames, 1)[None],
        "grid_times": torch.arange(frames).repeat_interleave(VIEWS)[None].float(),
    }


@torch.no_grad()
def measure(layer: CrossModalModulator, frames: Sequence[int], seconds: float = 1.0) -> list[Row]:
    """Time every number of frames in turns with the others."""
    width, text_width = layer.config.grid_width, layer.config.text_width
    text = torch.randn(1, QUESTION, text_width, generator=torch.Generator().manual_seed(0))
    one = inputs_of(1, width)
    runs, sizes = {}, {}
    for count in frames:
        given = inputs_of(count, width)
        state = layer.encode_grids(**given)
        _, asked = layer.prefill(text, state=state)
        sizes[count] = sum(tensor.nbytes for name, tensor in state.tensors.items() if name.startswith("grid."))
        runs[count, "encode"] = Run(lambda _, given=given: layer.encode_grids(**given))
        runs[count, "add"] = Run(lambda _, state=asked: layer.add_grids(state, **one))
        runs[count, "question"] = Run(lambda _, state=state: layer.prefill(text, state=state))
        runs[count, "token"] = Run(lambda _, state=asked: layer.step(text[:, 0], state))
    times = time_in_turns(runs, "cpu", seconds)
    return [
        Row(
            count, *(quantile(times[count, what], 0.5) for what in ("encode", "add", "question", "token")), sizes[count]
        )
        for count in frames
    ]


def markdown(rows: Sequence[Row]) -> str:
    table = markdown_table(
        ["frames", "taken in, a frame", "one more", "question", "token", "state, a frame"],
        [
            [
                row.frames,
                f"{row.encode_ms / row.frames:.2f} ms",
                f"{row.add_ms:.2f} ms",
                f"{row.question_ms:.1f} ms",
                f"{row.token_ms:.2f} ms",
                f"{row.state_bytes / row.frames / 1024:.0f} KiB",
            ]
            for row in rows
        ],
    )
    return (
        f"{table}\n\nMedians, float32, batch 1, a question of {QUESTION} tokens; {device_name('cpu')}, "
        f"{clock_name('cpu')}, torch {torch.__version__}."
    )


def main(frames: Sequence[int]) -> None:
    torch.manual_seed(0)
    layer = CrossModalModulator(CMMConfig(text_width=1024, grid_width=768, grid_times=True)).eval()
    print(markdown(measure(layer, frames)))


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or FRAMES)
