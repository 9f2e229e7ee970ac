"""Pages full of letters, from which the tower learns most in a step: every line in a face, size and ink of its own."""

from collections.abc import Sequence

import numpy as np

from ...evaluate.screens.fonts import ALPHABET, Face, line_height, width
from ...evaluate.screens.sampling import sample_look
from ...evaluate.screens.scenes import Scene, Text
from ...evaluate.screens.sheets import paper_and_ink
from ...evaluate.screens.words import letters, line

GAP = 6


def sample_page(rng: np.random.Generator, side: int, files: Sequence[str], sizes: tuple[int, int]) -> Scene:
    """Draw a random page of `side` pixels in fonts of `files`, of sizes from the first to the second."""
    background, ink = paper_and_ink(rng)
    texts: list[Text] = []
    y = int(rng.integers(-4, 6))
    while True:
        face = Face(files[rng.integers(len(files))], int(rng.integers(sizes[0], sizes[1] + 1)))
        y += line_height(face)
        if y > side - 4:
            break
        x = int(rng.integers(1, 2 * GAP))
        while x < side:
            text = line(rng) if rng.random() < 0.5 else letters(rng, ALPHABET, int(rng.integers(2, 9)))
            texts.append(Text(text, "line", 0, False, y, x, face, ink))
            x += round(width(face, text)) + int(rng.integers(GAP, 3 * GAP))
        y += int(rng.integers(0, 5))
    return Scene("page", "page", side, background, (), tuple(texts), sample_look(rng))
