"""The picture of the worst answers: each image with its question, what was wanted and what came, and the grounding."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from .fonts import drawable, fonts_for
from .outputs import SIGNATURE

COLUMNS, SIDE, BELOW, LEGEND = 3, 3.2, 0.45, 0.25
"""Pictures beside each other; inches of one, of the text below it, and of the legend below all."""
WANTED, VIEW, INK = "#15803d", "#ea580c", "#1c2530"
MOST_LETTERS = 46


class Worst(NamedTuple):
    """One answer to be shown."""

    image: Image.Image | None
    question: str
    wanted: str
    got: str
    box: Sequence[float] | None = None
    """(y0, x0, y1, x1), where the answer is to be seen."""
    view: Sequence[float] | None = None
    """The view that the answer rests on most."""


def draw_worst(rows: Sequence[Worst], path: Path) -> None:
    """Write the picture to `path`, as PNG: green is the box of the row, orange the view that the answer rests on."""
    across = min(COLUMNS, len(rows))
    down = math.ceil(len(rows) / across)
    told = {WANTED: "where the answer is to be seen"} if any(row.box is not None for row in rows) else {}
    told |= {VIEW: "the view that it rests on most"} if any(row.view is not None for row in rows) else {}
    fonts, missing = fonts_for([text for row in rows for text in (row.question, row.wanted, row.got)])
    with rc_context({"font.family": fonts, "text.parse_math": False, "text.color": INK}):
        figure = Figure(
            figsize=(across * SIDE, down * (SIDE + BELOW) + LEGEND), dpi=130, facecolor="white", layout="constrained"
        )
        for number, row in enumerate(rows, 1):
            axes = figure.add_subplot(down, across, number)
            axes.set_xticks([])
            axes.set_yticks([])
            if row.image is not None:
                axes.imshow(row.image)
            for box, colour in ((row.view, VIEW), (row.box, WANTED)):
                if box is not None:
                    y0, x0, y1, x1 = box
                    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2.5))
            lines = (row.question, f"wanted: {row.wanted}", f"got: {row.got or '(nothing)'}")
            axes.set_xlabel("\n".join(drawable(_short(line), missing) for line in lines), fontsize=8, loc="left")
        handles = [Patch(fill=False, edgecolor=colour, linewidth=2, label=words) for colour, words in told.items()]
        if handles:
            figure.legend(handles=handles, loc="outside lower left", ncols=2, fontsize=8, frameon=False)
        figure.savefig(path, format="png", metadata={"Software": SIGNATURE})


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"
