"""Scenes of screens as data: texts with their meaning and place, shapes behind them, and how the picture was taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .fonts import Face, ends, extent

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""(y0, x0, y1, x1)"""


@dataclass(frozen=True)
class Text:
    """One text of a scene.

    field    what it says: "destination", "price", ...; of a label what it is the label of
    row      which record of the scene it belongs to, from 0; -1: none, as titles and headers
    label    whether it only names a field
    y, x     where its baseline starts, in pixels of the sheet
    """

    text: str
    field: str
    row: int
    label: bool
    y: float
    x: float
    face: Face
    ink: RGB

    @property
    def box(self) -> Box:
        """The box of its ink on the sheet."""
        y0, x0, y1, x1 = extent(self.face, self.text)
        return self.y + y0, self.x + x0, self.y + y1, self.x + x1


@dataclass(frozen=True)
class Shape:
    """A rectangle behind the texts, filled, outlined or both; with no height or width it is a line."""

    box: Box
    fill: RGB | None = None
    outline: RGB | None = None


@dataclass(frozen=True)
class Look:
    """Way from a sheet to a picture.

    angle      degrees, counter-clockwise about the centre
    zoom       factor about the centre
    blur       radius in pixels
    noise      standard deviation of the levels
    quality    of JPEG; 0: none
    seed       of the noise
    """

    angle: float = 0.0
    zoom: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    quality: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """A sheet of side x side pixels of a kind and layout, and its look."""

    kind: str
    layout: str
    side: int
    background: RGB
    shapes: tuple[Shape, ...]
    texts: tuple[Text, ...]
    look: Look

    def values(self, field: str | None = None, row: int | None = None) -> list[Text]:
        """Return the texts that are no labels, of a field and of a row where these are given, in their order."""
        return [
            one
            for one in self.texts
            if not one.label and one.row >= 0 and field in (None, one.field) and row in (None, one.row)
        ]

    @property
    def rows(self) -> int:
        """The number of records."""
        return 1 + max((one.row for one in self.texts), default=-1)


def turn(look: Look) -> np.ndarray:
    """Return the matrix [2,2] from an offset (y, x) from the sheet's centre to one on the picture."""
    angle = math.radians(look.angle)
    return look.zoom * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def on_picture(scene: Scene, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Map points (y, x) of the sheet to the picture, [n,2]."""
    centre = scene.side / 2
    return (np.asarray(points, dtype=float).reshape(-1, 2) - centre) @ turn(scene.look).T + centre


def picture_box(scene: Scene, box: Box) -> Box:
    """Return the smallest upright box on the picture that holds a box of the sheet."""
    y0, x0, y1, x1 = box
    corners = on_picture(scene, [(y0, x0), (y0, x1), (y1, x0), (y1, x1)])
    (y0, x0), (y1, x1) = corners.min(0), corners.max(0)
    return float(y0), float(x0), float(y1), float(x1)


class Letter(NamedTuple):
    """A letter on the picture: its text's number in the scene, its place in the text, its centre and size in pixels.

    Its height is that of its text's ink, its width what the text gives it; both are those of an upright picture.
    """

    text: int
    place: int
    letter: str
    y: float
    x: float
    height: float
    width: float


def letters_of(scene: Scene) -> list[Letter]:
    """Return all letters of a scene's texts but spaces."""
    known, points = [], []
    for number, text in enumerate(scene.texts):
        y0, _, y1, _ = text.box
        stops, height = ends(text.face, text.text), scene.look.zoom * (y1 - y0)
        for place, (letter, start, end) in enumerate(zip(text.text, (0.0, *stops), stops)):
            if not letter.isspace():
                known.append((number, place, letter, height, scene.look.zoom * (end - start)))
                points.append(((y0 + y1) / 2, text.x + (start + end) / 2))
    centres = on_picture(scene, points).tolist()
    return [
        Letter(number, place, letter, y, x, height, width)
        for (number, place, letter, height, width), (y, x) in zip(known, centres)
    ]
