"""A sheet that layouts write on: colours, faces and columns, and texts that fit in them."""

from collections.abc import Callable, Sequence

import numpy as np

from .fonts import Face, line_height, width
from .scenes import RGB, Box, Shape, Text
from .words import Maker

ATTEMPTS = 12


class Sheet:
    """Shapes and texts so far, and what they are drawn with: two faces, an ink for values, labels and accents."""

    def __init__(self, rng: np.random.Generator, side: int, files: Sequence[str], sizes: tuple[int, int]):
        self.rng, self.side = rng, side
        size = int(rng.integers(sizes[0], sizes[1] + 1))
        first, second = (files[i] for i in rng.integers(len(files), size=2))
        self.face = Face(first, size)
        self.label_face = Face(second, max(sizes[0], size - int(rng.integers(3)))) if rng.random() < 0.5 else self.face
        self.step = line_height(self.face)
        self.margin = int(rng.integers(side // 32, side // 12 + 1))
        self.background, self.ink = paper_and_ink(rng)
        self.faint = _mixed(self.background, self.ink, rng.uniform(0.6, 1.0))
        self.panel = _mixed(self.background, self.ink, rng.uniform(0.04, 0.15))
        self.shapes: list[Shape] = []
        self.texts: list[Text] = []

    @property
    def right(self) -> int:
        """The right margin's place."""
        return self.side - self.margin

    @property
    def bottom(self) -> int:
        """The lower margin's place."""
        return self.side - self.margin

    def write(
        self,
        text: str,
        y: int,
        x: int,
        *,
        field: str,
        row: int = -1,
        label: bool = False,
        room: float | None = None,
        align: str = "left",
        ink: RGB | None = None,
    ) -> bool:
        """Write a text with its baseline at y, from x to the right (or up to x, or about it); False where it is wider
        than `room`, by default what is left of the sheet."""
        face = self.label_face if label else self.face
        wide = width(face, text)
        x = round(x - {"left": 0, "right": wide, "centre": wide / 2}[align])
        room = self.right - x + self.margin - 2 if room is None else room
        if wide > room or x < 1:
            return False
        ink = ink or (self.faint if label else self.ink)
        self.texts.append(Text(text, field, row, label, y, x, face, ink))
        return True

    def write_some(self, make: Maker, y: int, x: int, *, taken: set[str] | None = None, **options) -> bool:
        """Write a text of a maker that fits and is not one of those taken, which it joins; False where none is."""
        for _ in range(ATTEMPTS):
            text = make(self.rng)
            if taken is not None and text.casefold() in taken:
                continue
            if self.write(text, y, x, **options):
                if taken is not None:
                    taken.add(text.casefold())
                return True
        return False

    def fill(self, box: Box, colour: RGB | None = None, outline: RGB | None = None) -> None:
        self.shapes.append(Shape(box, colour, outline))

    def rule(self, y: int, x0: int | None = None, x1: int | None = None) -> None:
        """Draw a horizontal line."""
        self.fill((y, self.margin if x0 is None else x0, y + 1, self.right if x1 is None else x1), self.faint)

    def choose(self, *choices):
        return choices[self.rng.integers(len(choices))]


Layout = Callable[[Sheet, str], None]


def paper_and_ink(rng: np.random.Generator) -> tuple[RGB, RGB]:
    """Dark on light, or in a third of all sheets light on dark; at least half of the range lies between them."""
    paper = rng.uniform(190, 255) + rng.normal(0, 12, 3) * (rng.random() < 0.5)
    ink = rng.uniform(0, 60) + rng.uniform(0, 60, 3) * (rng.random() < 0.4)
    if rng.random() < 0.33:
        paper, ink = 255 - paper, 255 - ink
    return _levels(paper), _levels(ink)


def _mixed(one: RGB, other: RGB, share: float) -> RGB:
    return _levels(np.array(one) * (1 - share) + np.array(other) * share)


def _levels(values) -> RGB:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue
