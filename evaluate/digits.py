"""Scenes of coloured handwritten digits: what is in them, and how they are drawn.

The handwriting is scikit-learn's `load_digits`: 1797 digits of 8 x 8 pixels and 17 grey levels by 13 people (the test
set of UCI's "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998). It ships inside that package.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

# Hue in degrees. The six are far enough apart that an ink 9 degrees off is still called the same.
HUES = {"red": 0.0, "yellow": 50.0, "green": 120.0, "cyan": 182.0, "blue": 226.0, "purple": 290.0}
COLOURS = tuple(HUES)
HUE_SPREAD = 9.0

# The quarters of the image, in the order of the model's 2 x 2 tiles.
POSITIONS = ("top left", "top right", "bottom left", "bottom right")

# inside   a digit in each quarter, none across a border
# empty    one to three quarters hold a digit
# clutter  one to four quarters hold a digit, among strokes
# across   as clutter, with most digits across a border of the quarters; a digit belongs to the quarter of its centre
LAYOUTS = ("inside", "empty", "clutter", "across")
DIGITS_PER_SCENE = {
    "inside": {4: 1.0},
    "empty": {1: 0.25, 2: 0.4, 3: 0.35},
    "clutter": {1: 0.15, 2: 0.3, 3: 0.3, 4: 0.25},
    "across": {1: 0.15, 2: 0.3, 3: 0.3, 4: 0.25},
}

# How many digits each split has: recipes are chosen by "validation", and "held-out" is for what they give.
SPLITS = {"held-out": 360, "validation": 200, "train": 1237}
HANDWRITING_SIDE = 8
HANDWRITING_MARGIN = 2

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Digit:
    """One digit of a scene; lengths and places are in sides of the image."""

    label: int
    source: int
    """Which of the 1797 it is."""
    colour: str
    ink: RGB
    y: float
    x: float
    size: float
    angle: float
    """Degrees."""
    aspect: float
    shear: float
    threshold: float
    """The level of the handwriting, in 0..1, at which ink begins: the lower, the thicker the stroke."""

    @property
    def tile(self) -> int:
        """The quarter of its centre, as an index into POSITIONS."""
        return 2 * (self.y >= 0.5) + (self.x >= 0.5)


@dataclass(frozen=True)
class Stroke:
    """A piece of clutter: a grey line."""

    ends: tuple[float, float, float, float]
    """y0, x0, y1, x1."""
    width: float
    ink: RGB


@dataclass(frozen=True)
class Scene:
    layout: str
    digits: tuple[Digit, ...]
    strokes: tuple[Stroke, ...]
    background: tuple[RGB, RGB, RGB, RGB]
    """The colours of its four corners."""

    def at(self, tile: int) -> Digit | None:
        """The digit of a quarter."""
        return next((digit for digit in self.digits if digit.tile == tile), None)


@cache
def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """All digits: pixels [1797,8,8] uint8, 255 = ink, and labels [1797]."""
    digits = load_digits()
    return np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(int)


@cache
def sources(split: str) -> tuple[np.ndarray, ...]:
    """The indices of the digits of one of SPLITS, one array for each label; the splits are disjoint."""
    if split not in SPLITS:
        raise ValueError(f"sources: split is {split!r}; expected one of {', '.join(SPLITS)}")
    _, labels = handwriting()
    order = np.random.default_rng(0).permutation(len(labels))
    parts = np.split(order, np.cumsum(list(SPLITS.values())))
    chosen = np.sort(parts[list(SPLITS).index(split)])
    return tuple(chosen[labels[chosen] == label] for label in range(10))


def sample_scene(rng: np.random.Generator, layout: str, split: str, scale: float = 1.0) -> Scene:
    """A random scene of digits of a split, their sizes multiplied by `scale`."""
    if layout not in LAYOUTS:
        raise ValueError(f"sample_scene: layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    background = sample_background(rng)
    brightness = brightness_of(background)
    counts = DIGITS_PER_SCENE[layout]
    tiles = rng.permutation(4)[: rng.choice(list(counts), p=list(counts.values()))]
    # In a third of the scenes digits repeat, and in a third colours do, so that counts above one are common.
    labels = rng.permutation(10)[: rng.integers(1, 5)] if rng.random() < 0.35 else np.arange(10)
    colours = rng.permutation(len(COLOURS))[: rng.integers(2, 5) if rng.random() < 0.35 else len(COLOURS)]
    digits: list[Digit] = []
    for tile in tiles:
        place = _sample_place(rng, int(tile), layout, digits, scale)
        if place is None:
            continue
        label, colour = int(rng.choice(labels)), COLOURS[rng.choice(colours)]
        digits.append(
            Digit(
                label,
                int(rng.choice(sources(split)[label])),
                colour,
                sample_ink(rng, colour, brightness),
                *place,
                angle=rng.uniform(-14, 14),
                aspect=rng.uniform(0.85, 1.1),
                shear=rng.uniform(-0.12, 0.12),
                threshold=rng.uniform(0.38, 0.55),
            )
        )
    strokes = ()
    if layout in ("clutter", "across"):
        strokes = tuple(sample_stroke(rng, brightness) for _ in range(rng.integers(3, 9)))
    return Scene(layout, tuple(digits), strokes, background)


def draw(scene: Scene, side: int = 128) -> Image.Image:
    """The scene as an RGB image of side x side pixels."""
    corners = Image.fromarray(np.array(scene.background, dtype=np.uint8).reshape(2, 2, 3))
    image = corners.resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for stroke in scene.strokes:
        y0, x0, y1, x1 = (end * side for end in stroke.ends)
        pen.line((x0, y0, x1, y1), fill=stroke.ink, width=max(1, round(stroke.width * side)))
    for digit in scene.digits:
        _paste(image, digit)
    return image


def _paste(image: Image.Image, digit: Digit) -> None:
    pixels, _ = handwriting()
    side = image.width
    patch = max(4, round(1.5 * digit.size * side))
    top, left = round(digit.y * side - patch / 2), round(digit.x * side - patch / 2)
    # From an offset on the image (right, down) back to one on the handwriting: rotation, shear, aspect, scale undone.
    turn = math.radians(digit.angle)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    back = np.array([[1 / digit.aspect, digit.shear], [0, 1]]) @ rotation * (HANDWRITING_SIDE / (digit.size * side))
    centre = HANDWRITING_SIDE / 2 + HANDWRITING_MARGIN
    (a, b), (d, e) = back
    c, f = centre - back @ np.array([digit.x * side - left, digit.y * side - top])
    written = Image.fromarray(np.pad(pixels[digit.source], HANDWRITING_MARGIN))
    ink = written.transform((patch, patch), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)
    # A soft step: what was blurred by enlarging has an edge again.
    level = (np.arange(256) / 255 - digit.threshold) / 0.4 + 0.5
    image.paste(digit.ink, (left, top), ink.point((255 * level.clip(0, 1)).astype(int).tolist()))


def brightness_of(background: tuple[RGB, RGB, RGB, RGB]) -> float:
    """The mean of its corners, 0..1."""
    return float(np.mean([_luma(corner) for corner in background]))


def _luma(colour: Sequence[float]) -> float:
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255


def sample_background(rng: np.random.Generator) -> tuple[RGB, RGB, RGB, RGB]:
    """White paper, black, or a light or dark grey, faintly coloured and shaded."""
    kind = rng.random()
    if kind < 0.25:
        corners = np.full((4, 3), 255.0 if kind < 0.15 else 0.0)
    else:
        level = rng.uniform(195, 255) if kind < 0.65 else rng.uniform(0, 75)
        tint = rng.normal(0, rng.uniform(0, 14), 3)
        corners = level + tint + rng.normal(0, rng.uniform(0, 16), (4, 1))
    return tuple(tuple(int(value) for value in corner) for corner in corners.clip(0, 255))


def sample_ink(rng: np.random.Generator, colour: str, brightness: float) -> RGB:
    """An ink of the colour that stands out from the background: the first of twelve, or else the best of them."""
    best, best_contrast = None, -1.0
    for _ in range(12):
        hue = (HUES[colour] + rng.uniform(-HUE_SPREAD, HUE_SPREAD)) % 360 / 360
        levels = colorsys.hsv_to_rgb(hue, rng.uniform(0.62, 1), rng.uniform(0.55, 1))
        ink = tuple(int(255 * level) for level in levels)
        contrast = abs(_luma(ink) - brightness)
        if contrast > best_contrast:
            best, best_contrast = ink, contrast
        if contrast > 0.25:
            break
    return best


def _sample_place(
    rng: np.random.Generator, tile: int, layout: str, others: Sequence[Digit], scale: float
) -> tuple[float, float, float] | None:
    """(y, x, size) of a digit of this quarter that overlaps no other; None where 25 attempts found none."""
    row, column = divmod(tile, 2)
    for _ in range(25):
        size = scale * rng.uniform(0.26, 0.42 if layout == "across" else 0.46)
        kind = rng.random() if layout == "across" else 1.0
        y = _sample_centre(rng, row, size, across=kind < 0.4 or 0.8 <= kind < 0.9)
        x = _sample_centre(rng, column, size, across=0.4 <= kind < 0.9)
        if all(max(abs(y - other.y), abs(x - other.x)) >= 0.46 * (size + other.size) for other in others):
            return y, x, size
    return None


def _sample_centre(rng: np.random.Generator, half: int, size: float, across: bool) -> float:
    """A coordinate of the centre, in the first or second half of the image, clear of the middle line or across it."""
    if not across:
        return 0.5 * half + rng.uniform(size / 2 + 0.005, 0.495 - size / 2)
    # At least 0.06 from the line (a quarter of a small digit), so that the quarter of the centre is the one that a
    # reader would name.
    distance = rng.uniform(min(0.06, 0.25 * size), 0.35 * size)
    return 0.5 + distance if half else 0.5 - distance


def sample_stroke(rng: np.random.Generator, brightness: float) -> Stroke:
    y, x = rng.uniform(0, 1, 2)
    length, direction = rng.uniform(0.02, 0.16), rng.uniform(0, 2 * math.pi)
    level = brightness + rng.choice([-1, 1]) * rng.uniform(0.1, 0.5)
    ink = (255 * level + rng.normal(0, 18, 3)).clip(0, 255)
    ends = (y, x, y + length * math.sin(direction), x + length * math.cos(direction))
    return Stroke(ends, rng.uniform(0.006, 0.025), tuple(int(value) for value in ink))
