"""Draw docs/architecture.png and print the table of shapes on docs/architecture.md: python docs/architecture.py"""

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from firebolt_vl.files.tables import markdown_table

PICTURE = Path(__file__).with_name("architecture.png")
INK, FAINT = "#1c2530", "#66717e"
IMAGE, TEXT, LAYER, DECODER = "#dbeafe", "#fef3c7", "#ede9fe", "#dcfce7"


class Sizes(NamedTuple):
    """Sizes of a model, and how many tokens it is asked."""

    tokens: int
    view: int
    tile: int
    grid_width: int
    text_width: int
    decoder_layers: int
    vocabulary: int
    tiles: int = 4
    heads: int = 4


FULL = Sizes(32, 256, 128, 768, 1024, 16, 65536)
EMBEDDED = Sizes(17, 64, 32, 96, 96, 4, 446)


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """What one image and one question become on their way, B = 1."""
    T, G, D = sizes.tokens, 1 + sizes.tiles, sizes.text_width
    return {
        "`pixel_values`, the whole image": (1, 3, sizes.view, sizes.view),
        "`pixel_tiles`, its tiles": (1, sizes.tiles, 3, sizes.tile, sizes.tile),
        "`grids`, a pooled vector for each view": (1, G, sizes.grid_width),
        "table of both FiLMs, made once": (1, G, 4 * D),
        "`input_ids`, the question": (1, T),
        "its embeddings X_t": (1, T, D),
        "weights w, what each token sees": (1, T, G),
        "modulated embeddings X_out": (1, T, D),
        "the decoder's last hidden states": (1, T, D),
        "logits": (1, T, sizes.vocabulary),
    }


def table() -> str:
    """The table of docs/architecture.md."""
    full, embedded = shapes(FULL), shapes(EMBEDDED)
    rows = [[name, _shape(full[name]), _shape(embedded[name])] for name in full]
    return markdown_table(["tensor", "full size", "embedded model"], rows)


def draw(path: Path) -> None:
    """Write the picture as PNG."""
    figure = Figure(figsize=(13, 7.4), dpi=110, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 13), ylim=(0, 7.4))
    axes.axis("off")
    found = shapes(FULL)

    def shape(name: str) -> str:
        return _shape(next(value for key, value in found.items() if name in key))

    axes.text(0.35, 7.0, "From an image and a question to an answer", size=16, weight="bold", color=INK, va="center")
    axes.text(
        0.35,
        6.62,
        f"shapes of the full-size model: one image, {FULL.tokens} tokens",
        size=10.5,
        color=FAINT,
        va="center",
    )

    _box(axes, 0.35, 5.0, 2.3, 1.1, IMAGE, "image", "processor:\n1 view and 4 tiles")
    _box(axes, 3.75, 5.0, 2.3, 1.1, IMAGE, "vision tower", "SigLIP 2, 12 layers,\npooled")
    _box(axes, 7.15, 5.0, 2.3, 1.1, IMAGE, "grid side", "keys, and a table\nof both FiLMs")
    _arrow(axes, (2.65, 5.55), (3.75, 5.55), f"{shape('pixel_values')}\n{shape('pixel_tiles')}", at=(3.2, 5.93))
    _arrow(axes, (6.05, 5.55), (7.15, 5.55), f"grids\n{shape('grids')}", at=(6.6, 5.93))
    axes.text(9.65, 5.55, "made once an image,\nkept in the cache", size=9.5, color=FAINT, va="center")

    axes.add_patch(
        FancyBboxPatch((3.55, 1.75), 6.1, 2.45, boxstyle="round,pad=0,rounding_size=0.12", fc="#f7f5ff", ec="#a78bfa")
    )
    axes.text(3.7, 2.02, "Cross-Modal Modulator", size=11.5, weight="bold", color=INK, va="center")
    parts = (
        ("correlation", "each token\nweighs the grids"),
        ("FiLM", "scale and shift\nby what it saw"),
        ("SSM", "S4, S4D or Mamba,\ncausal in time"),
        ("FiLM, FFN", "residual,\nfeed-forward"),
    )
    for number, (title, about) in enumerate(parts):
        _box(axes, 3.7 + 1.48 * number, 2.3, 1.32, 1.1, LAYER, title, about, size=8.2)
        if number:
            _arrow(axes, (3.54 + 1.48 * number, 2.85), (3.7 + 1.48 * number, 2.85))
    _arrow(axes, (7.9, 5.0), (4.36, 3.4), f"keys: weights w {shape('weights')}", at=(5.1, 4.55))
    _arrow(axes, (8.1, 5.0), (5.84, 3.4))
    _arrow(axes, (8.5, 5.0), (8.8, 3.4), f"table {shape('table')}", at=(9.6, 4.55))

    _box(axes, 0.35, 2.3, 1.9, 1.1, TEXT, "question", "tokens, embedding")
    _arrow(axes, (2.25, 2.85), (3.7, 2.85), f"X_t\n{shape('X_t')}", at=(2.9, 3.3))
    _box(axes, 10.85, 2.3, 1.8, 1.1, DECODER, "decoder", f"LFM2, {FULL.decoder_layers} layers,\nT positions", size=9)
    _arrow(axes, (9.46, 2.85), (10.85, 2.85), f"X_out\n{shape('X_out')}", at=(10.25, 3.3))
    _arrow(axes, (11.75, 2.3), (11.75, 1.45), "")
    axes.text(11.75, 1.2, f"logits {shape('logits')}", size=9, color=INK, ha="center", va="center")
    axes.text(11.75, 0.9, "next token", size=11.5, weight="bold", color=INK, ha="center", va="center")
    axes.plot([10.95, 1.3, 1.3], [0.9, 0.9, 1.2], color=FAINT, lw=1.4)
    _arrow(axes, (1.3, 1.1), (1.3, 2.3))
    axes.text(
        6.6,
        1.12,
        "each next token: one step of the modulator and of the decoder, on the states of the last one",
        size=9.5,
        color=FAINT,
        ha="center",
        va="center",
    )
    axes.text(
        6.6,
        0.4,
        "The decoder never has a position for an image: the grids change what its text positions hold.",
        size=10.5,
        color=INK,
        ha="center",
        va="center",
    )
    figure.savefig(path, format="png", metadata={"Software": None})


def _box(axes, x, y, width, height, colour, title, about, size=9.5) -> None:
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.1", fc=colour, ec=FAINT, lw=0.8)
    )
    middle = x + width / 2
    axes.text(middle, y + 0.8 * height, title, size=10.5, weight="bold", color=INK, ha="center", va="center")
    axes.text(middle, y + 0.36 * height, about, size=size, color=INK, ha="center", va="center", linespacing=1.35)


def _arrow(axes, start, end, label="", at=None) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=FAINT, lw=1.4, shrinkA=0, shrinkB=0)
    )
    if label:
        axes.text(*at, label, size=8.5, color=INK, ha="center", va="center", linespacing=1.3)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


if __name__ == "__main__":
    draw(PICTURE)
    print(table())
