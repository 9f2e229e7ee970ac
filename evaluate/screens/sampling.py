"""Random scenes: of a kind and a split, whose fonts, layouts, sizes and noise are those of training or beyond them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import fonts, layouts
from .drawing import NOISE
from .scenes import Look, Scene
from .sheets import Sheet

SIDE, LEAST_SIDE = 192, 96
ATTEMPTS = 20


@dataclass(frozen=True)
class Split:
    """Fonts, layouts and sizes of letters that screens are drawn with, and how much harm is done to the picture.

    sizes      of letters, in pixels of a sheet of SIDE pixels, from the smallest to the largest
    harm       factor on the ranges of angle, zoom, blur and noise; above 1 JPEG is coarser too
    """

    fonts_held_out: bool = False
    layouts_held_out: bool = False
    sizes: tuple[tuple[int, int], ...] = ((11, 16),)
    harm: float = 1.0


SPLITS = {
    "seen": Split(),
    "fonts": Split(fonts_held_out=True),
    "layouts": Split(layouts_held_out=True),
    "both": Split(fonts_held_out=True, layouts_held_out=True),
    "beyond": Split(fonts_held_out=True, layouts_held_out=True, sizes=((9, 10), (17, 20)), harm=2.0),
}
"""What is trained on, what is held out of it, and sizes and noise beyond it; every split has held-out wordings too."""


def sample_scene(
    rng: np.random.Generator, kind: str, split: Split, *, side: int = SIDE, extra_fonts: Sequence[str] = ()
) -> Scene:
    """Draw a random scene of a kind; `extra_fonts` are files beside those of matplotlib, for training.

    Letters keep their size in pixels whatever the side: a small sheet has less on it. Raises ValueError for an unknown
    kind.
    """
    if kind not in layouts.SEEN:
        raise ValueError(f"sample_scene: kind is {kind!r}; expected one of {', '.join(layouts.SCREENS)}")
    files = (*fonts.font_files(split.fonts_held_out), *extra_fonts)
    chosen = (layouts.HELD_OUT if split.layouts_held_out else layouts.SEEN)[kind]
    for _ in range(ATTEMPTS):
        layout = chosen[rng.integers(len(chosen))]
        sheet = Sheet(rng, side, files, split.sizes[rng.integers(len(split.sizes))])
        layout(sheet, kind)
        look = sample_look(rng, split.harm)
        scene = Scene(kind, layout.__name__, side, sheet.background, tuple(sheet.shapes), tuple(sheet.texts), look)
        if scene.values():
            return scene
    raise ValueError(f"sample_scene: side is {side}; expected a sheet on which a {kind} has room")


def sample_look(rng: np.random.Generator, harm: float = 1.0) -> Look:
    """Draw what is done to a picture: in a third of all nothing but noise."""
    straight = rng.random() < 0.33
    coarse = rng.random() < 0.5
    return Look(
        angle=0.0 if straight else float(rng.uniform(-1.5, 1.5)) * harm,
        zoom=1.0 if straight else float(rng.uniform(1 - 0.06 * harm, 1)),
        blur=float(rng.uniform(0, 0.5)) * harm if rng.random() < 0.4 else 0.0,
        noise=float(rng.uniform(0, 7)) * harm,
        quality=int(rng.integers(round(40 / harm), 95)) if coarse else 0,
        seed=int(rng.integers(NOISE)),
    )
