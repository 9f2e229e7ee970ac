"""Fonts for text in any script: which of those on this machine have its letters, and which letters none has."""

import unicodedata
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

FIRST = "DejaVu Sans"
# Where they are there they come first: faces made for reading, of the widest reach.
PREFERRED = ("Noto Sans", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Devanagari", "Arial Unicode MS")

UNKNOWN = "\ufffd"
# Faces of boxes, of mathematics, and with other signs under the letters' numbers.
NO_LETTERS = ("Last Resort", "cm", "STIXSize", "STIXNonUnicode", "DejaVu Math")


def fonts_for(texts: Iterable[str]) -> tuple[list[str], str]:
    """The families that draw the letters of `texts`, the first font that has a letter first; and the letters that no
    font on this machine has, each once."""
    families, missing = [FIRST], {letter for text in texts for letter in text if _is_drawn(letter)}
    missing -= _letters(FIRST)
    for family in (*PREFERRED, *_installed()):
        if not missing:
            break
        if found := missing & _letters(family):
            families.append(family)
            missing -= found
    return families, "".join(sorted(missing))


def drawable(text: str, missing: str) -> str:
    """The text with the replacement character for what no font has, of which `note` tells: a box tells nothing."""
    return "".join(UNKNOWN if letter in missing else letter for letter in text if _is_drawn(letter) or letter.isspace())


def note(missing: str, most: int = 4) -> str:
    """One line about what cannot be drawn; "" where all can."""
    if not missing:
        return ""
    named = ", ".join(f"U+{ord(letter):04X}" for letter in missing[:most])
    more = f" and {len(missing) - most} more" if len(missing) > most else ""
    return f"{UNKNOWN}: no font on this machine has {named}{more}; a Noto font does"


def _is_drawn(letter: str) -> bool:
    """Tell whether a letter is drawn: no space, no control, no mark that only says how its neighbours are drawn."""
    return unicodedata.category(letter) not in ("Cc", "Cf", "Zs", "Zl", "Zp", "Cn", "Cs") and not (
        0xFE00 <= ord(letter) <= 0xFE0F
    )


@cache
def _installed() -> tuple[str, ...]:
    names = {entry.name for entry in font_manager.fontManager.ttflist}
    return tuple(sorted(name for name in names if not name.startswith(NO_LETTERS)))


@cache
def _letters(family: str) -> frozenset[str]:
    """Return the letters that the upright face of a family has; none where it does not exist, or cannot be read."""
    faces = [entry for entry in font_manager.fontManager.ttflist if entry.name == family]
    for entry in sorted(faces, key=lambda entry: (entry.style != "normal", entry.weight not in (400, "normal"))):
        try:
            return frozenset(map(chr, FT2Font(entry.fname).get_charmap()))
        except (RuntimeError, OSError):
            continue
    return frozenset()


__all__ = ["drawable", "fonts_for", "note"]
