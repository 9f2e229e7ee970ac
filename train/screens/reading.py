"""Labels of what stands in each patch of a screen, and heads that read them, thrown away after training.

It teaches the tower in minutes: a screen of sixty letters gives sixty labels where a question gives one answer, and no
alignment has to be found, as with CTC (A. Graves et al., 2006), since the drawing knows where each letter is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...evaluate.screens.fonts import ALPHABET
from ...evaluate.screens.layouts import LABELS
from ...evaluate.screens.scenes import Letter, Scene, Text, letters_of

BLANK = len(ALPHABET)
# In the places of letters before the first and after the last.
START = END = len(ALPHABET)
NUMBERS = {letter: number for number, letter in enumerate(ALPHABET)}
PLACES, ROWS = 18, 9
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
    after          the letter after it, or END
    place          the place of the left one in its text, the last of PLACES for all from there
    field          what its text says: an index into FIELDS, and as many again for labels
    row            its text's row, 0 where it has none

    Where only the right half has a letter, what follows is that one's.
    """

    left: Tensor
    right: Tensor
    before: Tensor
    after: Tensor
    place: Tensor
    field: Tensor
    row: Tensor


SIZES = {
    "left": BLANK + 1,
    "right": BLANK + 1,
    "before": START + 1,
    "after": END + 1,
    "place": PLACES,
    "field": 2 * len(FIELDS),
    "row": ROWS,
}


def labels_of(scenes: Sequence[Scene], patch: int) -> tuple[Labels, list[dict[tuple[int, int], list[int]]]]:
    """Return the labels of scenes' patches, and for each scene the patches of each letter by its text and place."""
    side = scenes[0].side // patch
    # Of each half of a patch the number of the letter that covers its middle; the last one of the table is no letter.
    covering = np.full((len(scenes), side, 2 * side), -1)
    table: list[tuple[int, ...]] = []
    patches: list[dict[tuple[int, int], list[int]]] = []
    for number, scene in enumerate(scenes):
        placed: dict[tuple[int, int], list[int]] = {}
        # The widest first: what is too narrow for the middle of a half is written over what has others beside it.
        for letter in sorted(letters_of(scene), key=lambda letter: -letter.width):
            rows = _covered(letter.y, letter.height, patch, side)
            halves = _covered(letter.x, letter.width, patch / 2, 2 * side)
            columns = range(halves.start // 2, (halves.stop + 1) // 2)
            placed[letter.text, letter.place] = [row * side + column for row in rows for column in columns]
            covering[number, rows.start : rows.stop, halves.start : halves.stop] = len(table)
            table.append(_values(letter, scene.texts[letter.text]))
        patches.append(placed)
    values = np.array([*table, (BLANK, *[UNKNOWN] * (len(SIZES) - 2))])
    left, right = covering[:, :, ::2], covering[:, :, 1::2]
    known = [values[left, 0], values[right, 0], *np.moveaxis(values[np.where(left < 0, right, left), 1:], -1, 0)]
    return Labels(*(torch.from_numpy(one.reshape(len(scenes), -1)) for one in known)), patches


def _covered(centre: float, size: float, step: float, count: int) -> range:
    """Those of `count` steps whose middles something covers; else the one that it is in, where that is one of them."""
    first, last = math.ceil((centre - size / 2) / step - 0.5), math.floor((centre + size / 2) / step - 0.5)
    if first > last:
        first = last = math.floor(centre / step)
    return range(min(max(0, first), count), max(0, min(last + 1, count)))


def _values(letter: Letter, text: Text) -> tuple[int, ...]:
    """The labels of a patch with a letter: all of `Labels` but the right half's."""
    before, after = (text.text[place : place + 1].strip() for place in (letter.place - 1, letter.place + 1))
    return (
        NUMBERS[letter.letter],
        NUMBERS[before] if before else START,
        NUMBERS[after] if after else END,
        min(letter.place, PLACES - 1),
        FIELDS.index(text.field) + len(FIELDS) * text.label,
        min(max(text.row, 0), ROWS - 1),
    )


class Heads(nn.Module):
    """Linear readings of a patch, one for each of the labels."""

    def __init__(self, width: int):
        super().__init__()
        self.readings = nn.Linear(width, sum(SIZES.values()))
        self.register_buffer("weight", torch.ones(BLANK + 1), persistent=False)
        self.weight[BLANK] = BLANK_WEIGHT

    def loss(self, patches: Tensor, labels: Labels) -> tuple[Tensor, float]:
        """Return the sum of the cross-entropies of patches [S,P,D], and the share of letters that are read right."""
        logits = self.readings(patches).float().flatten(0, 1)
        read = dict(zip(SIZES, logits.split(list(SIZES.values()), -1)))
        total = patches.new_zeros(())
        for name, logits in read.items():
            weight = self.weight if name in ("left", "right") else None
            total = total + F.cross_entropy(logits, getattr(labels, name).flatten(), weight=weight)
        left = labels.left.flatten()
        there = left != BLANK
        return total, (read["left"].argmax(-1) == left)[there].float().mean().item()
