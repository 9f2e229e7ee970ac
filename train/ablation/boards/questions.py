"""Questions about boards, a word a token, whose answers are one word; five kinds, drawn for many boards at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ....evaluate.digits import COLOURS
from .scenes import CELLS, CELLS_A_SIDE, DIGITS, Boards

# at        the digit, or the colour, in a cell: one look, at a place
# find      the colour, or the row, of a digit that is there once: one look, for a thing
# count     how many there are of a colour: a look at everything
# both      the row of a digit of a colour, among others of the digit and others of the colour: a look for two words
# beside    the digit right of one that is there once: a second look, from where the first led
KINDS = ("at", "find", "count", "both", "beside")
FIRST_KINDS = KINDS[:3]
"""Kinds whose look one word alone decides."""
NAMES = ("ann", "bob", "cleo")
ROWS = tuple(f"row {row + 1}" for row in range(CELLS_A_SIDE))
CELL_NAMES = tuple(f"{column}{row + 1}" for row in range(CELLS_A_SIDE) for column in "abcd")
PLAIN = ("digit", "colour", "row", "at", "of", "right of", "how many", "?")
WORDS = ("<pad>", *map(str, range(DIGITS)), *COLOURS, *ROWS, *CELL_NAMES, *NAMES, *PLAIN)
TOKEN = {word: token for token, word in enumerate(WORDS)}
PAD = TOKEN["<pad>"]
DIGIT, COLOUR, ROW, CELL = TOKEN["0"], TOKEN[COLOURS[0]], TOKEN[ROWS[0]], TOKEN[CELL_NAMES[0]]
NAME = TOKEN[NAMES[0]]
LONGEST = 5


@dataclass(frozen=True)
class Questions:
    """N questions: `ids` [N,T], padded on the right, their `lengths` [N], the `answers` [N], a token each, the `kinds`
    [N], and `shows` [N,16] bool, the cells that the answer rests on."""

    ids: Tensor
    lengths: Tensor
    answers: Tensor
    kinds: Tensor
    shows: Tensor

    @property
    def mask(self) -> Tensor:
        return torch.arange(self.ids.shape[1]) < self.lengths[:, None]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: Tensor | slice) -> "Questions":
        return Questions(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def ask(boards: Boards, kinds: Tensor, generator: torch.Generator) -> Questions:
    """Ask a question of `kinds` [N], indices into KINDS, about each board; of kind "at" where it has none of that."""
    made = [_KINDS[kind](boards, generator) for kind in KINDS]
    possible = torch.stack([there for *_, there in made], 1)
    kinds = kinds.where(possible.gather(1, kinds[:, None])[:, 0], 0)
    rows = torch.arange(len(boards))
    ids, answers, shows = (torch.stack([one[part] for one in made], 1)[rows, kinds] for part in range(3))
    return Questions(ids, (ids != PAD).sum(1), answers, kinds, shows)


def _any_of(candidates: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One of the candidates [N,16] bool of each row at random, [N], and whether there is one, [N]."""
    return (torch.rand(candidates.shape, generator=generator) * candidates).argmax(1), candidates.any(1)


def _at(x: Tensor, cell: Tensor) -> Tensor:
    """x [N,16] at a cell of each row [N]."""
    return x.gather(1, cell[:, None])[:, 0]


def _shown(*cells: Tensor) -> Tensor:
    shown = torch.zeros(len(cells[0]), CELLS, dtype=torch.bool)
    for cell in cells:
        shown.scatter_(1, cell[:, None], True)
    return shown


def text_of(*words: str | Tensor, length: int = LONGEST) -> Tensor:
    """Token ids [N,length], padded on the right, of words: the same in all rows, or a token for each [N]."""
    rows = next(len(word) for word in words if isinstance(word, Tensor))
    ids = torch.full((rows, length), PAD)
    for place, word in enumerate(words):
        ids[:, place] = TOKEN[word] if isinstance(word, str) else word
    return ids


def _counts(values: Tensor) -> Tensor:
    """Count how often the value of each cell is there on its board, [N,16]."""
    return (values[:, :, None] == values[:, None]).sum(-1)


def _once(boards: Boards) -> Tensor:
    return boards.filled & (_counts(boards.digits) == 1)


def _ask_at(boards: Boards, generator: torch.Generator):
    cell, there = _any_of(boards.filled, generator)
    digit = torch.rand(len(boards), generator=generator) < 0.5
    what = torch.where(digit, TOKEN["digit"], TOKEN["colour"])
    answers = torch.where(digit, DIGIT + _at(boards.digits, cell), COLOUR + _at(boards.colours, cell))
    return text_of(what, "at", CELL + cell, "?"), answers, _shown(cell), there


def _ask_find(boards: Boards, generator: torch.Generator):
    cell, there = _any_of(_once(boards), generator)
    colour = torch.rand(len(boards), generator=generator) < 0.5
    text = text_of(torch.where(colour, TOKEN["colour"], TOKEN["row"]), "of", DIGIT + _at(boards.digits, cell), "?")
    answers = torch.where(colour, COLOUR + _at(boards.colours, cell), ROW + cell // CELLS_A_SIDE)
    return text, answers, _shown(cell), there


def _ask_count(boards: Boards, generator: torch.Generator):
    colour = torch.randint(len(COLOURS), (len(boards),), generator=generator)
    counted = boards.colours == colour[:, None]
    text = text_of("how many", "of", COLOUR + colour, "?")
    return text, DIGIT + counted.sum(1).clamp(max=DIGITS - 1), counted, counted.sum(1) < DIGITS


def _ask_both(boards: Boards, generator: torch.Generator):
    pair = torch.where(boards.filled, boards.digits * len(COLOURS) + boards.colours, -1)
    several = (_counts(boards.digits) > 1) & (_counts(boards.colours) > 1)
    cell, there = _any_of(boards.filled & several & (_counts(pair) == 1), generator)
    text = text_of("row", "of", COLOUR + _at(boards.colours, cell), DIGIT + _at(boards.digits, cell), "?")
    return text, ROW + cell // CELLS_A_SIDE, _shown(cell), there


def _ask_beside(boards: Boards, generator: torch.Generator):
    followed = boards.filled.roll(-1, 1) & (torch.arange(CELLS) % CELLS_A_SIDE < CELLS_A_SIDE - 1)
    cell, there = _any_of(_once(boards) & followed, generator)
    other = (cell + 1) % CELLS
    text = text_of("digit", "right of", DIGIT + _at(boards.digits, cell), "?")
    return text, DIGIT + _at(boards.digits, other).clamp(0), _shown(other), there


_KINDS = {
    "at": _ask_at,
    "find": _ask_find,
    "count": _ask_count,
    "both": _ask_both,
    "beside": _ask_beside,
}
