"""Fonts of the screens: those that come with matplotlib, in two disjoint parts, and more of a folder for training."""

from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

# What texts on screens are spelled with; every face has a glyph for each.
ALPHABET = "".join(chr(code) for code in range(33, 127) if chr(code).isalnum()) + ".,:-/"

# Families, so that no style of a held-out one is trained on. DejaVu, STIX and Computer Modern (BaKoMa) ship inside
# matplotlib.
SEEN = {
    "DejaVu Sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf"),
    "DejaVu Sans Mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "STIXGeneral": ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    "cmss10": ("cmss10.ttf",),
    "cmb10": ("cmb10.ttf",),
}
HELD_OUT = {
    "DejaVu Serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "cmr10": ("cmr10.ttf",),
    "cmtt10": ("cmtt10.ttf",),
}
SUFFIXES = (".ttf", ".otf")
# Beginnings of families that have other signs under the letters' numbers.
SYMBOLS = ("cmsy", "cmex", "cmmi", "stixsize", "stixnonunicode", "last resort")


class Face(NamedTuple):
    """A font file at a size in pixels."""

    file: str
    size: int


def font_files(held_out: bool) -> tuple[str, ...]:
    """Return the files of one of the two parts, by names that `load` takes, a family's together."""
    return tuple(file for files in (HELD_OUT if held_out else SEEN).values() for file in files)


def extra_fonts(folder: str | Path) -> tuple[str, ...]:
    """Return the paths of the fonts in a folder and below it that have the whole alphabet, sorted.

    Those of families that are held out are left out, whatever their files are called; so are symbol fonts and files
    that cannot be read. Raises ValueError where nothing is left.
    """
    found = sorted(str(file) for file in Path(folder).rglob("*") if file.suffix.lower() in SUFFIXES)
    chosen = tuple(file for file in found if _is_training_font(file))
    if not chosen:
        raise ValueError(f"extra_fonts: folder is {folder}; expected font files with the letters {ALPHABET}")
    return chosen


def _is_training_font(file: str) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        family = ImageFont.truetype(file, 12).getname()[0] or ""
        letters = FT2Font(file).get_charmap()
    except (OSError, RuntimeError):
        return False
    left_out = (*(name.lower() for name in HELD_OUT), *SYMBOLS)
    return not family.lower().startswith(left_out) and all(ord(letter) in letters for letter in ALPHABET)


@cache
def _folder() -> Path:
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=1024)
def load(face: Face) -> ImageFont.FreeTypeFont:
    """Load a face, once; a name without a folder is one of matplotlib's files.

    Letters are laid out by FreeType alone, so that they stand where they stand on any other machine. Raises OSError for
    a font that is not there, as where a distribution's matplotlib leaves some out.
    """
    path = _folder() / face.file  # an absolute path stays as it is
    try:
        return ImageFont.truetype(str(path), face.size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise OSError(
            f"load: face is {face.file}, which cannot be read ({error}); expected it in {path.parent}, as "
            "pip install matplotlib puts it there"
        ) from None


class Glyph(NamedTuple):
    """A letter as it is drawn: how much of each pixel it covers, its left upper corner from the pen on the baseline
    (x to the right, y down), and by how much the pen moves on."""

    covered: Image.Image
    x: int
    y: int
    advance: float


@lru_cache(maxsize=1 << 16)
def glyph(face: Face, letter: str) -> Glyph:
    """Return a letter of a face, drawn once: there are far fewer of them than of texts."""
    font = load(face)
    x0, y0, x1, y1 = font.getbbox(letter, anchor="ls")
    covered = Image.new("L", (max(1, round(x1 - x0)), max(1, round(y1 - y0))))
    ImageDraw.Draw(covered).text((-x0, -y0), letter, fill=255, font=font, anchor="ls")
    return Glyph(covered, round(x0), round(y0), font.getlength(letter))


@lru_cache(maxsize=1 << 14)
def extent(face: Face, text: str) -> tuple[float, float, float, float]:
    """Return the box (y0, x0, y1, x1) of a text's ink from the start of its baseline, in pixels."""
    placed = [(x, glyph(face, letter)) for x, letter in zip((0.0, *ends(face, text)), text) if not letter.isspace()]
    return (
        min(one.y for _, one in placed),
        min(x + one.x for x, one in placed),
        max(one.y + one.covered.height for _, one in placed),
        max(x + one.x + one.covered.width for x, one in placed),
    )


@lru_cache(maxsize=1 << 14)
def ends(face: Face, text: str) -> tuple[float, ...]:
    """Return where each letter of a text ends, in pixels from the start of its baseline; letters are not kerned."""
    return tuple(accumulate(glyph(face, letter).advance for letter in text))


def width(face: Face, text: str) -> float:
    """Return how wide a text's ink reaches from the start of its baseline, in pixels."""
    return extent(face, text)[3]


def line_height(face: Face) -> int:
    """Return the distance of lines of text, in pixels."""
    return round(1.3 * face.size)
