"""Boards of coloured handwritten digits, a digit in a cell: what is where, and the pixels, drawn anew for each step."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ....evaluate.digits import COLOURS, HUE_SPREAD, HUES, handwriting, sources

CELLS_A_SIDE, CELL_SIDE = 4, 8
CELLS, SIDE = CELLS_A_SIDE**2, CELLS_A_SIDE * CELL_SIDE
EMPTY = -1
DIGITS = 10
SINGLE = 4
"""Digits that a board has once each; of REPEATED others any number."""
REPEATED = 3
FILLED = (10, 14)
"""The fewest digits of a board, and one more than the most."""
DARKEST, BRIGHTEST = 0.0, 0.3
INK = (0.7, 1.0)
PIXEL_NOISE = 0.03


@dataclass(frozen=True)
class Boards:
    """N boards, cell by cell in reading order: `digits`, `colours` and `written` [N,16], the label, the index into
    COLOURS and which of the handwritten digits it is; EMPTY where there is none."""

    digits: Tensor
    colours: Tensor
    written: Tensor

    def __len__(self) -> int:
        return len(self.digits)

    @property
    def filled(self) -> Tensor:
        return self.digits >= 0


def sample_boards(count: int, split: str, generator: torch.Generator) -> Boards:
    """Draw boards at random, with handwriting of a split.

    On each, SINGLE digits are there once, so that a question can name them by what they are, and REPEATED others fill
    the rest of its cells that hold one.
    """
    order = torch.rand(count, DIGITS, generator=generator).argsort(1)
    others = SINGLE + torch.randint(REPEATED, (count, CELLS - SINGLE), generator=generator)
    digits = order.gather(1, torch.cat([torch.arange(SINGLE).expand(count, -1), others], 1))
    filled = torch.randint(*FILLED, (count, 1), generator=generator)
    digits = digits.masked_fill(torch.arange(CELLS) >= filled, EMPTY)
    digits = digits.gather(1, torch.rand(count, CELLS, generator=generator).argsort(1))
    colours = torch.randint(len(COLOURS), (count, CELLS), generator=generator)
    table, sizes = _written(split)
    place = (torch.rand(count, CELLS, generator=generator) * sizes[digits]).long()
    empty = digits == EMPTY
    return Boards(digits, colours.masked_fill(empty, EMPTY), table[digits, place].masked_fill(empty, EMPTY))


@cache
def _written(split: str) -> tuple[Tensor, Tensor]:
    """The handwritten digits of a split by label [10,M], padded, and how many there are of each [10]."""
    found = sources(split)
    sizes = torch.tensor([len(of_label) for of_label in found])
    table = torch.zeros(DIGITS, int(sizes.max()), dtype=torch.long)
    for label, of_label in enumerate(found):
        table[label, : len(of_label)] = torch.from_numpy(of_label)
    return table, sizes


@cache
def _glyphs() -> Tensor:
    """The handwriting [1797,8,8] in 0..1."""
    pixels, _ = handwriting()
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def draw_boards(boards: Boards, generator: torch.Generator) -> Tensor:
    """Draw boards as images [N,3,32,32] in -1..1: inks of each colour's hue on a dark grey, with noise."""
    count = len(boards)
    hues = torch.tensor(list(HUES.values()))[boards.colours]
    hues = hues + HUE_SPREAD * (2 * torch.rand(count, CELLS, generator=generator) - 1)
    low, high = INK
    value = low + (high - low) * torch.rand(count, CELLS, generator=generator)
    ink = value[..., None] * _rgb_of_hues(hues)
    alpha = _glyphs()[boards.written] * boards.filled[..., None, None]  # [N,16,8,8]
    ground = DARKEST + (BRIGHTEST - DARKEST) * torch.rand(count, 1, 1, 1, 1, generator=generator)
    cells = ground + alpha[:, :, None] * (ink[..., None, None] - ground)  # [N,16,3,8,8]
    image = cells.unflatten(1, (CELLS_A_SIDE, CELLS_A_SIDE)).permute(0, 3, 1, 4, 2, 5).reshape(count, 3, SIDE, SIDE)
    noise = PIXEL_NOISE * torch.randn(image.shape, generator=generator)
    return 2 * (image + noise).clamp(0, 1) - 1


def _rgb_of_hues(hues: Tensor) -> Tensor:
    """Full colours [...,3] of hues in degrees: 1 - clamp(min(k, 4 - k), 0, 1), k = (n + hue/60) mod 6, n = 5, 3, 1."""
    k = (torch.tensor([5.0, 3.0, 1.0]) + hues[..., None] / 60) % 6
    return 1 - torch.minimum(k, 4 - k).clamp(0, 1)
