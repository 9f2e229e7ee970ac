"""Clips of many small handwritten digits, each of its own colour, that move or stand still among strokes."""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .digits import (
    COLOURS,
    RGB,
    Digit,
    Scene,
    brightness_of,
    draw,
    sample_background,
    sample_ink,
    sample_stroke,
    sources,
)

# Of a frame's side. A digit's box is a square of its size, whatever its strokes fill of it.
SIZES = (0.17, 0.22)
LEAST_DIGITS = 4
FASTEST = 0.16
ATTEMPTS = 60


@dataclass(frozen=True)
class Clip:
    """Frames of the same digits, no two of one colour; all have one background and the same strokes."""

    scenes: tuple[Scene, ...]

    @property
    def digits(self) -> tuple[Digit, ...]:
        """The digits as they are in the first frame."""
        return self.scenes[0].digits

    def boxes(self, colour: str) -> np.ndarray:
        """[T,4]: y0, x0, y1, x1 of the digit of a colour in each frame, in sides of it."""
        found = [next(digit for digit in scene.digits if digit.colour == colour) for scene in self.scenes]
        return np.array([(d.y - d.size / 2, d.x - d.size / 2, d.y + d.size / 2, d.x + d.size / 2) for d in found])


def sample_clip(rng: np.random.Generator, split: str, frames: int, moving: bool) -> Clip:
    """A random clip of digits of a split: LEAST_DIGITS to one of every colour, anywhere, none over another.

    Each digit of a moving clip goes along a line of its own, at most FASTEST of a side from frame to frame.
    """
    background = sample_background(rng)
    brightness = brightness_of(background)
    wanted = rng.integers(LEAST_DIGITS, len(COLOURS) + 1)
    paths: list[tuple[np.ndarray, float]] = []
    digits: list[Digit] = []
    for colour in rng.permutation(COLOURS)[:wanted]:
        found = _sample_path(rng, frames, moving, paths)
        if found is None:
            continue
        paths.append(found)
        (path, size), label = found, int(rng.integers(10))
        digits.append(
            Digit(
                label,
                int(rng.choice(sources(split)[label])),
                str(colour),
                sample_ink(rng, str(colour), brightness),
                *path[0],
                size,
                angle=rng.uniform(-14, 14),
                aspect=rng.uniform(0.85, 1.1),
                shear=rng.uniform(-0.12, 0.12),
                threshold=rng.uniform(0.38, 0.55),
            )
        )
    strokes = tuple(sample_stroke(rng, brightness) for _ in range(rng.integers(3, 9)))
    scenes = []
    for frame in range(frames):
        moved = tuple(replace(digit, y=path[frame, 0], x=path[frame, 1]) for digit, (path, _) in zip(digits, paths))
        scenes.append(Scene("clip", moved, strokes, background))
    return Clip(tuple(scenes))


def sample_visits(rng: np.random.Generator, split: str, frames: int) -> Clip:
    """A random clip of one digit, among strokes: half of an even number of frames it moves along a line in one quarter
    of the picture, then along another line in another quarter.
    """
    background = sample_background(rng)
    brightness = brightness_of(background)
    size, label, colour = rng.uniform(0.26, 0.4), int(rng.integers(10)), str(rng.choice(COLOURS))
    places = np.concatenate(
        [
            np.linspace(*(_whole_in_quarter(rng, int(quarter), size) for _ in range(2)), frames // 2)
            for quarter in rng.permutation(4)[:2]
        ]
    )
    digit = Digit(
        label,
        int(rng.choice(sources(split)[label])),
        colour,
        sample_ink(rng, colour, brightness),
        *places[0],
        size,
        angle=rng.uniform(-14, 14),
        aspect=rng.uniform(0.85, 1.1),
        shear=rng.uniform(-0.12, 0.12),
        threshold=rng.uniform(0.38, 0.55),
    )
    strokes = tuple(sample_stroke(rng, brightness) for _ in range(rng.integers(3, 9)))
    return Clip(tuple(Scene("clip", (replace(digit, y=y, x=x),), strokes, background) for y, x in places))


def sample_card(rng: np.random.Generator, colour: str) -> RGB:
    """An ink of a colour, as the digits have them: what a card of that colour is filled with."""
    return sample_ink(rng, colour, brightness_of(sample_background(rng)))


def draw_clip(clip: Clip, side: int) -> list[Image.Image]:
    """Its frames, drawn twice as large first: small digits get smooth edges."""
    return [draw(scene, 2 * side).resize((side, side), Image.Resampling.BILINEAR) for scene in clip.scenes]


def _sample_path(
    rng: np.random.Generator, frames: int, moving: bool, others: list[tuple[np.ndarray, float]]
) -> tuple[np.ndarray, float] | None:
    """Centres [T,2] (y, x) and size of a digit that is whole in every frame and over no other; None where none fits."""
    for _ in range(ATTEMPTS):
        size = rng.uniform(*SIZES)
        path = np.tile(rng.uniform(size / 2, 1 - size / 2, 2), (frames, 1))
        if moving:
            speed, direction = rng.uniform(0, FASTEST), rng.uniform(0, 2 * np.pi)
            path += np.arange(frames)[:, None] * speed * np.array([np.sin(direction), np.cos(direction)])
        inside = (path >= size / 2).all() and (path <= 1 - size / 2).all()
        if inside and all((abs(path - p).max(-1) >= 0.5 * (size + s)).all() for p, s in others):
            return path, size
    return None


def _whole_in_quarter(rng: np.random.Generator, quarter: int, size: float) -> list[float]:
    """A random centre (y, x) of a digit that no border of a quarter cuts."""
    return [0.5 * half + rng.uniform(size / 2 + 0.005, 0.495 - size / 2) for half in divmod(quarter, 2)]
