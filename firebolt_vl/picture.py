"""The grounding picture: what an answer rests on, drawn over the image, and what each word of the question weighed."""

from collections.abc import Sequence
from os import PathLike
from typing import BinaryIO

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from .fonts import drawable, fonts_for, note
from .outputs import SIGNATURE

MOST_WORDS = 16
# Colours do not stretch to show an effect smaller than this, in nats: it is noise.
LEAST_SCALE = 0.1
INK, FAINT, LINE, ACCENT = "#1c2530", "#66717e", "#c9d0d8", "#c2410c"
EFFECTS = LinearSegmentedColormap.from_list("effects", ["#1d4ed8", "#60a5fa", "#eef1f4", "#fb923c", "#ea580c"])
WEIGHTS = colormaps["Purples"]
# Inches: the page's margin and two columns, where the columns start, what stands below the image and above the table.
MARGIN, LEFT, GAP, RIGHT, TOP, BELOW, HEADER = 0.45, 5.0, 0.75, 5.4, 1.95, 1.35, 0.62
SHORTEST, TALLEST = 2.2, 5.0
LOWEST_ROW, HIGHEST_ROW, WIDEST_COLUMN = 0.27, 0.42, 0.72


def draw(
    image: Image.Image,
    words: Sequence[str],
    weights: np.ndarray | None,
    boxes: np.ndarray,
    effects: np.ndarray,
    question: str,
    answer: str,
    path: str | PathLike | BinaryIO,
    *,
    patches: int = 0,
) -> None:
    """Write the grounding picture to `path`, as PNG: tiles with their numbers, or patches as a heat map.

    Args:
        image: the image that was asked about.
        words: W words of the question; the first 16 are shown.
        weights: [W,G], what each word weighed: the modulator's weights, averaged over the word's tokens. None for a
            model that has none; without them, or without words, the right half is left out.
        boxes: [G,4], (y0, x0, y1, x1) in pixels of the image; of views the first is the global one.
        effects: [G], by how many nats the answer's log-probability falls when the grid is masked.
        patches: how many of the grids, the last ones, are the patches of the whole image in reading order. Where there
            are some, views have no part in the picture.
    """
    boxes, effects = np.asarray(boxes, dtype=np.float64), np.asarray(effects, dtype=np.float64)
    weights = np.asarray(weights, dtype=np.float64) if weights is not None and len(words) else None
    # An extreme image (20000 x 10) is stretched to a shape that can be looked at.
    height = float(np.clip(LEFT * image.height / image.width, SHORTEST, TALLEST))
    width = float(np.clip(height * image.width / image.height, SHORTEST, LEFT))
    across = MARGIN + LEFT + (GAP + RIGHT if weights is not None else 0) + MARGIN
    table = HEADER + LOWEST_ROW * min(len(words), MOST_WORDS) + 0.3 if weights is not None else 0
    down = TOP + max(height + BELOW, table + MARGIN)
    fonts, missing = fonts_for([question, answer, *words])
    question, answer, *words = (drawable(text, missing) for text in (question, answer, *words))
    style = {"font.family": fonts, "text.parse_math": False, "text.color": INK, "axes.edgecolor": LINE}
    with rc_context(style):
        figure = Figure(figsize=(across, down), dpi=160, facecolor="white")
        for y, text, colour in ((0.5, question, INK), (0.9, answer or "(an empty answer)", ACCENT)):
            text = _shortened(text, int((across - 2 * MARGIN) / 0.098))
            size = min(17, 72 * (across - 2 * MARGIN) / (0.7 * len(text)))
            _write(figure, MARGIN, y, text, size=size, weight="bold", color=colour)
        if patches:
            rows = len(np.unique(boxes[-patches:, 0].round(6)))
            _draw_heat(figure, image, effects[-patches:].reshape(rows, -1), width, height)
            if weights is not None:
                _draw_looks(figure, words, weights[:, -patches:].reshape(len(words), rows, -1), image, height)
        else:
            _draw_effects(figure, image, boxes, effects, width, height)
            if weights is not None:
                _draw_weights(figure, words, weights, boxes, image, height)
        _write(figure, MARGIN, down - 0.18, note(missing), size=8, color=FAINT)
        figure.savefig(path, format="png", metadata={"Software": SIGNATURE})


def _draw_effects(figure: Figure, image, boxes, effects, width: float, height: float) -> None:
    scale = max(LEAST_SCALE, np.abs(effects).max(initial=0))
    _title(
        figure,
        MARGIN,
        "What the answer rests on",
        "occlusion: by how many nats the answer's log-probability",
        "falls when the tile is hidden from the model",
    )
    axes = _place(figure, MARGIN, TOP, width, height)
    _show(axes, image)
    for number, (box, effect) in enumerate(zip(boxes[1:], effects[1:]), start=1):
        y0, x0, y1, x1 = box
        colour = EFFECTS(0.5 + 0.5 * effect / scale)
        strength = abs(effect) / scale
        tile = (x0, y0), x1 - x0, y1 - y0
        axes.add_patch(Rectangle(*tile, facecolor=colour, alpha=0.3 * strength, linewidth=0))
        axes.add_patch(Rectangle(*tile, fill=False, edgecolor="white", linewidth=1.2))
        outlined = [withStroke(linewidth=2.5, foreground="black", alpha=0.65)]
        inset = 0.035 * np.array([boxes[0, 3], boxes[0, 2]])
        axes.text(
            *(np.array([x0, y0]) + inset), number, size=9, color="white", ha="left", va="top", path_effects=outlined
        )
        axes.text(
            (x0 + x1) / 2,
            y1 - inset[1] / 2,
            _signed(effect),
            size=12,
            weight="bold",
            color="white",
            ha="center",
            va="bottom",
            path_effects=outlined,
        )

    below = TOP + height + 0.3
    ratio = width / height
    thumb_height = min(0.62, 1.1 / ratio)
    thumb = _place(figure, MARGIN, below, thumb_height * ratio, thumb_height)
    _show(thumb, image)
    whole = EFFECTS(0.5 + 0.5 * effects[0] / scale)
    thumb.add_patch(Rectangle((0, 0), *image.size, facecolor=whole, alpha=0.3 * abs(effects[0]) / scale, linewidth=0))
    if np.abs(effects).max() < LEAST_SCALE:
        _write(figure, MARGIN + LEFT, TOP - 0.58, "no tile matters", size=11, weight="bold", color=ACCENT, ha="right")
    strongest = int(np.argmax(effects))
    if effects[strongest] >= LEAST_SCALE:
        y0, x0, y1, x1 = boxes[strongest]
        framed = axes if strongest else thumb
        framed.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=EFFECTS(0.95), linewidth=3.5, zorder=3)
        )
    beside = MARGIN + thumb_height * ratio + 0.14
    _write(figure, beside, below + 0.2, "global view", size=9.5, color=FAINT)
    _write(figure, beside, below + 0.5, _signed(effects[0]), size=12, weight="bold")

    _scale_bar(figure, below, scale)


def _scale_bar(figure: Figure, below: float, scale: float) -> None:
    start, end = MARGIN + LEFT - 2.6, MARGIN + LEFT
    bar = figure.colorbar(
        ScalarMappable(Normalize(-scale, scale), EFFECTS),
        cax=_place(figure, start, below + 0.06, end - start, 0.13),
        orientation="horizontal",
        ticks=[],
    )
    bar.outline.set_visible(False)
    for x, side, value, words in ((start, "left", -scale, "speaks against it"), (end, "right", scale, "rests on it")):
        _write(figure, x, below + 0.32, _signed(value), size=8.5, color=FAINT, ha=side)
        _write(figure, x, below + 0.5, words, size=8.5, color=FAINT, ha=side)
    _write(figure, (start + end) / 2, below + 0.32, "0", size=8.5, color=FAINT, ha="center")


def _draw_heat(figure: Figure, image, effects: np.ndarray, width: float, height: float) -> None:
    """The effects of patches [rows,columns], over the image."""
    scale = max(LEAST_SCALE, np.abs(effects).max(initial=0))
    _title(
        figure,
        MARGIN,
        "What the answer rests on",
        "occlusion: by how many nats the answer's log-probability",
        "falls when the patch is hidden from the model",
    )
    axes = _place(figure, MARGIN, TOP, width, height)
    _show(axes, image)
    strength = 0.75 * np.abs(effects) / scale
    _over(axes, image, EFFECTS(0.5 + 0.5 * effects / scale), strength)
    if np.abs(effects).max() < LEAST_SCALE:
        _write(figure, MARGIN + LEFT, TOP - 0.58, "no patch matters", size=11, weight="bold", color=ACCENT, ha="right")
    _scale_bar(figure, TOP + height + 0.3, scale)


def _draw_looks(figure: Figure, words, weights: np.ndarray, image, height: float) -> None:
    """The weights of each word for patches [W,rows,columns], a small heat map a word."""
    left = MARGIN + LEFT + GAP
    _title(
        figure,
        left,
        "What each word weighed",
        "the modulator's weights: how each word divides its look among the",
        "patches. They say where it looked, not what the answer rests on",
    )
    words, hidden = list(words[:MOST_WORDS]), len(words) - MOST_WORDS
    columns = min(4, len(words))
    rows = -(-len(words) // columns)
    cell_width, cell_height = RIGHT / columns, (height + BELOW - MARGIN) / rows
    room = cell_height - 0.3
    across = min(cell_width - 0.15, room * image.width / image.height)
    down = min(room, across * image.height / image.width)
    scale = max(weights.max(initial=0), 1e-9)
    for number, (word, looks) in enumerate(zip(words, weights)):
        x, y = left + number % columns * cell_width, TOP + number // columns * cell_height
        axes = _place(figure, x, y + 0.25, max(across, 0.05), max(down, 0.05))
        _show(axes, image)
        _over(axes, image, WEIGHTS(0.4 + 0.6 * looks / scale), 0.85 * looks / scale)
        _write(figure, x, y + 0.12, _shortened(word, int(cell_width / 0.09)), size=9.5)
    if hidden > 0:
        note = f"and {hidden} more word{'s' if hidden > 1 else ''}"
        _write(figure, left, TOP + rows * cell_height + 0.1, note, size=9, color=FAINT)


def _over(axes: Axes, image: Image.Image, colours: np.ndarray, strength: np.ndarray) -> None:
    """Cells of colour [rows,columns,4] over all of the image, as opaque as their strength [rows,columns] in 0..1."""
    colours = np.concatenate([colours[..., :3], strength[..., None]], -1)
    axes.imshow(colours, extent=(0, image.width, image.height, 0), aspect="auto", interpolation="nearest")
    axes.set(xlim=(0, image.width), ylim=(image.height, 0))


def _draw_weights(figure: Figure, words, weights, boxes, image, height: float) -> None:
    left = MARGIN + LEFT + GAP
    _title(
        figure,
        left,
        "What each word weighed",
        "the modulator's weights: how each word divides its look among the",
        "views. They say where it looked, not what the answer rests on",
    )
    hidden = len(words) - MOST_WORDS
    words, weights = list(words[:MOST_WORDS]), weights[:MOST_WORDS]
    count, grids = weights.shape
    label = 0.35 + 0.085 * min(16, max(len(word) for word in words))
    row = float(np.clip((height + BELOW - MARGIN - HEADER) / count, LOWEST_ROW, HIGHEST_ROW))
    # The global view stands apart from the tiles by a third of a column.
    column = min(WIDEST_COLUMN, (RIGHT - label) / (grids + 1 / 3))
    icon = HEADER - 0.32
    top = TOP + HEADER
    scale = max(weights.max(initial=0), 1e-9)

    def cells(x: float, values: np.ndarray) -> None:
        axes = _place(figure, x, top, column * values.shape[1], row * count)
        axes.imshow(values, cmap=WEIGHTS, vmin=0, vmax=scale, aspect="auto", interpolation="nearest")
        axes.set_xticks(np.arange(values.shape[1] - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=1.5)
        axes.tick_params(which="both", length=0)
        if column >= 0.36:
            for (y, x), value in np.ndenumerate(values):
                axes.text(
                    x,
                    y,
                    f"{100 * value:.0f}%",
                    size=8.5,
                    ha="center",
                    va="center",
                    color="white" if value > 0.6 * scale else INK,
                )

    cells(left + label, weights[:, :1])
    if grids > 1:
        cells(left + label + 4 / 3 * column, weights[:, 1:])
    for y, word in enumerate(words):
        _write(figure, left + label - 0.12, top + (y + 0.5) * row, _shortened(word, 16), size=10.5, ha="right")
    for grid, box in enumerate(boxes):
        middle = left + label + (grid + 0.5 + (1 / 3 if grid else 0)) * column
        if column >= 0.2:
            _draw_icon(figure, middle, TOP + 0.02, min(icon, 0.8 * column), box, image)
            _write(figure, middle, TOP + icon + 0.17, "all" if grid == 0 else grid, size=8.5, color=FAINT, ha="center")
    if hidden > 0:
        note = f"and {hidden} more word{'s' if hidden > 1 else ''}"
        _write(figure, left + label, top + row * count + 0.2, note, size=9, color=FAINT)


def _draw_icon(figure: Figure, middle: float, top: float, size: float, box, image) -> None:
    """Draw where the grid lies: the image's outline, the box filled."""
    axes = _place(figure, middle - size / 2, top, size, size)
    y0, x0, y1, x1 = box / np.array([image.height, image.width, image.height, image.width])
    axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, color=FAINT, linewidth=0))


def _show(axes: Axes, image: Image.Image) -> None:
    """The image in its own pixels as coordinates, thinned out to what the page can show."""
    small = image.copy()
    small.thumbnail((1200, 1200))
    axes.imshow(small, extent=(0, image.width, image.height, 0), aspect="auto", interpolation="nearest")
    axes.set(xticks=[], yticks=[], xlim=(0, image.width), ylim=(image.height, 0))


def _place(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes at (x, y) inches from the page's top left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((x / across, 1 - (y + height) / down, width / across, height / down))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_linewidth(0.8)
    return axes


def _write(figure: Figure, x: float, y: float, text, **style) -> None:
    """A line of text at (x, y) inches from the page's top left corner, y in the middle of the line."""
    across, down = figure.get_size_inches()
    figure.text(x / across, 1 - y / down, text, va="center", **style)


def _title(figure: Figure, x: float, title: str, *lines: str) -> None:
    _write(figure, x, TOP - 0.58, title, size=13, weight="bold")
    for y, line in zip((TOP - 0.35, TOP - 0.15), lines):
        _write(figure, x, y, line, size=9.5, color=FAINT)


def _signed(effect: float) -> str:
    text = f"{effect:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
