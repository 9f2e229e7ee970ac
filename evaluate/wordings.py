"""Wordings of questions as patterns of alternatives, and the ways in which people type them."""

import itertools
import re

import numpy as np


def expand(pattern: str) -> list[str]:
    """Return every string of a pattern of nested alternatives "(a|b)"."""
    innermost = re.search(r"\(([^()]*)\)", pattern)
    if innermost is None:
        return [pattern]
    before, after = pattern[: innermost.start()], pattern[innermost.end() :]
    return list(itertools.chain.from_iterable(expand(before + choice + after) for choice in innermost[1].split("|")))


def as_typed(rng: np.random.Generator, text: str) -> str:
    """Return a question as people type it: a third begin with a capital letter, a quarter end without a mark."""
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.25:
        text = text[:-1]
    return text
