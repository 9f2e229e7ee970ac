"""Labels of what stands in each patch of a screen, and heads that read them, thrown away after training.

It teaches the tower in minutes: a screen of sixty letters gives sixty labels where a question gives one answer, and no
alignment has to be found, as with CTC (A. Graves et al., 2006), since the drawing knows where each letter is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...evaluate.screens.fonts import ALPHABET
from ...evaluate.screens.layouts import LABELS
from ...evaluate.screens.scenes import Letter, Scene, Text, letters_of

BLANK, START = len(ALPHABET), len(ALPHABET) + 1
PLACES, ROWS = 12, 9
FIELDS = (*LABELS, "message", "line", "title")
UNKNOWN = -100
"""The label that `F.cross_entropy` passes over."""
# Of blank patches, which are most of them.
BLANK_WEIGHT = 0.1


@dataclass
class Labels:
    """Labels of S screens' patches, each [S,P] long.

    left, right    the letter that covers the middle of the left and of the right half, or BLANK
    before         the letter before the left one in its text, or START; as all that follows UNKNOWN where there is none
    place          the place of the left one in its text, the last of PLACES for all from there
    field          what its text says: an index into FIELDS, and as many again for labels
    row            its text's row, 0 where it has none

    Where only the right half has a letter, what follows is that one's.
    """

    left: Tensor
    right: Tensor
    before: Tensor
    place: Tensor
    field: Tensor
    row: Tensor


SIZES = {
    "left": BLANK + 1,
    "right": BLANK + 1,
    "before": START + 1,
    "place": PLACES,
    "field": 2 * len(FIELDS),
    "row": ROWS,
}


def labels_of(scenes: Sequence[Scene], patch: int) -> tuple[Labels, list[dict[tuple[int, int], list[int]]]]:
    """Return the labels of scenes' patches, and for each scene the patches of each letter by its text and place."""
    side = scenes[0].side // patch
    found = {one.name: np.full((len(scenes), side, side), UNKNOWN) for one in fields(Labels)}
    found["left"][:] = found["right"][:] = BLANK
    patches: list[dict[tuple[int, int], list[int]]] = []
    for number, scene in enumerate(scenes):
        placed: dict[tuple[int, int], list[int]] = {}
        # The widest first: what is too narrow for the middle of a half is written over what has others beside it.
        for letter in sorted(letters_of(scene), key=lambda letter: -letter.width):
            halves = _halves(letter, patch, side)
            placed[letter.text, letter.place] = sorted({row * side + half // 2 for row, half in halves})
            for row, half in halves:
                _label(found, number, row, half, letter, scene.texts[letter.text])
        patches.append(placed)
    return Labels(**{name: torch.from_numpy(values).flatten(1) for name, values in found.items()}), patches


def _halves(letter: Letter, patch: int, side: int) -> list[tuple[int, int]]:
    """The halves of patches (row, half's column) whose middles a letter covers, at least the one that it is in."""
    rows = _covered(letter.y - letter.height / 2, letter.y + letter.height / 2, letter.y, patch)
    halves = _covered(letter.x - letter.width / 2, letter.x + letter.width / 2, letter.x, patch / 2)
    return [(row, half) for row in rows for half in halves if 0 <= row < side and 0 <= half < 2 * side]


def _covered(start: float, end: float, centre: float, step: float) -> range | tuple[int]:
    """The numbers of steps whose middles lie between start and end; else of the one with the centre."""
    first, last = math.ceil(start / step - 0.5), math.floor(end / step - 0.5)
    return range(first, last + 1) if first <= last else (math.floor(centre / step),)


def _label(found: dict[str, np.ndarray], number: int, row: int, half: int, letter: Letter, text: Text) -> None:
    """Label half a patch with a letter; the left half's text is the patch's."""
    at = number, row, half // 2
    name = ("left", "right")[half % 2]
    found[name][at] = ALPHABET.index(letter.letter)
    if name == "right" and found["left"][at] != BLANK:
        return
    before = text.text[letter.place - 1].strip() if letter.place else ""
    found["before"][at] = ALPHABET.index(before) if before else START
    found["place"][at] = min(letter.place, PLACES - 1)
    found["field"][at] = FIELDS.index(text.field) + len(FIELDS) * text.label
    found["row"][at] = min(max(text.row, 0), ROWS - 1)


class Heads(nn.Module):
    """Linear readings of a patch, one for each of the labels."""

    def __init__(self, width: int):
        super().__init__()
        self.readings = nn.Linear(width, sum(SIZES.values()))
        self.register_buffer("weight", torch.ones(BLANK + 1), persistent=False)
        self.weight[BLANK] = BLANK_WEIGHT

    def loss(self, patches: Tensor, labels: Labels) -> tuple[Tensor, float]:
        """Return the sum of the cross-entropies of patches [S,P,D], and the share of letters that are read right."""
        read = dict(zip(SIZES, self.readings(patches).flatten(0, 1).split(list(SIZES.values()), -1)))
        total = patches.new_zeros(())
        for name, logits in read.items():
            weight = self.weight if name in ("left", "right") else None
            total = total + F.cross_entropy(logits, getattr(labels, name).flatten(), weight=weight)
        left = labels.left.flatten()
        there = left != BLANK
        return total, (read["left"].argmax(-1) == left)[there].float().mean().item()
