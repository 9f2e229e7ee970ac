"""Pictures of where the foveated model looked: a page with every frame, or an animation of them."""

from collections.abc import Sequence
from os import PathLike
from typing import BinaryIO

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from .fonts import drawable, fonts_for, note
from .outputs import SIGNATURE
from .picture import ACCENT, FAINT, INK

COLUMNS = 8
# Inches: a frame's width on the page, the space around it, what stands above the first row and below each frame.
CELL, GAP, MARGIN, TOP, CAPTION = 1.55, 0.16, 0.4, 1.75, 0.3
LONGEST_SIDE, GIF_SIDE = 320, 384
FRAME_MS, LAST_FRAME_MS = 600, 1500
GLOW = LinearSegmentedColormap.from_list("glow", ["#101820", "#7c2d12", "#ea580c", "#fde047"])


def overlay(frame: Image.Image, shares: np.ndarray, longest: int = LONGEST_SIDE) -> Image.Image:
    """The frame as the query saw it: dark where it did not look, glowing where it looked most.

    shares [h,w]: each patch's share of the look; the largest of the frame glows fully.
    """
    scale = longest / max(frame.size)
    size = tuple(max(1, round(side * scale)) for side in frame.size)
    heat = Image.fromarray((shares / max(shares.max(), 1e-12)).astype(np.float32))
    heat = np.asarray(heat.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    seen = np.asarray(frame.convert("RGB").resize(size, Image.Resampling.BILINEAR)) / 255
    glow = GLOW(heat[..., 0])[..., :3]
    # Grey and dim away from the look; its own colours, under some glow, at the look.
    grey = seen.mean(-1, keepdims=True) * 0.55
    mixed = (1 - heat) * grey + heat * (0.7 * seen + 0.3 * glow) + 0.25 * heat * (1 - heat) * glow
    return Image.fromarray((mixed.clip(0, 1) * 255).astype(np.uint8))


def draw_page(
    frames: Sequence[Image.Image],
    shares: np.ndarray,
    captions: Sequence[str],
    question: str,
    answer: str,
    mode: str,
    path: str | PathLike | BinaryIO,
) -> None:
    """Write a page of all frames [T] with `shares` [T,h,w] over them to `path`, as PNG."""
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    tall = CELL * min(2.0, max(frame.height / frame.width for frame in frames))
    across = max(2 * MARGIN + columns * (CELL + GAP) - GAP, 6.0)
    down = TOP + rows * (tall + CAPTION + GAP) + MARGIN / 2
    fonts, missing = fonts_for([question, answer])
    question, answer = (drawable(text, missing) for text in (question, answer))
    style = {"font.family": fonts, "text.parse_math": False, "text.color": INK}
    with rc_context(style):
        figure = Figure(figsize=(across, down), dpi=140, facecolor="white")

        def write(x: float, y: float, text: str, **how) -> None:
            figure.text(x / across, 1 - y / down, text, va="center", **how)

        for y, text, colour in ((0.45, question, INK), (0.82, answer or "(an empty answer)", ACCENT)):
            text = _shortened(text, int((across - 2 * MARGIN) / 0.11))
            write(MARGIN, y, text, size=14, weight="bold", color=colour)
        write(
            MARGIN, 1.18, f"where the query of each frame looked ({mode}): the brighter and more", size=9, color=FAINT
        )
        write(
            MARGIN, 1.38, "colourful, the larger a patch's share; the brightest is the frame's own", size=9, color=FAINT
        )
        for number, (frame, share, caption) in enumerate(zip(frames, shares, captions)):
            row, column = divmod(number, columns)
            x, y = MARGIN + column * (CELL + GAP), TOP + row * (tall + CAPTION + GAP)
            axes = figure.add_axes((x / across, 1 - (y + tall) / down, CELL / across, tall / down))
            axes.imshow(overlay(frame, share))
            axes.set_axis_off()
            write(x + CELL / 2, y + tall + 0.14, caption, size=8.5, color=FAINT, ha="center")
        write(MARGIN, down - 0.14, note(missing), size=8, color=FAINT)
        figure.savefig(path, format="png", metadata={"Software": SIGNATURE})


def draw_animation(
    frames: Sequence[Image.Image], shares: np.ndarray, captions: Sequence[str], path: str | PathLike | BinaryIO
) -> None:
    """Write an animation of all frames with `shares` [T,h,w] over them to `path`, as GIF."""
    size = overlay(frames[0], shares[0], GIF_SIDE).size
    pages = []
    for frame, share, caption in zip(frames, shares, captions):
        page = overlay(frame, share, GIF_SIDE).resize(size)
        pen = ImageDraw.Draw(page)
        pen.text((6, 4), caption, fill="white", stroke_width=2, stroke_fill="black")
        pages.append(page.quantize(128, dither=Image.Dither.NONE))
    times = [FRAME_MS] * (len(pages) - 1) + [LAST_FRAME_MS]
    pages[0].save(path, format="GIF", save_all=True, append_images=pages[1:], duration=times, loop=0, comment=SIGNATURE)


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
