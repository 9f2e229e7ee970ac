"""Scores of a free answer: exact match, F1 of words, ANLS. Each is 0 to 1, the best over several wanted answers."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from .vqa import ARTICLES

LEAST_SIMILARITY = 0.5
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, wanted: str | Sequence[str]) -> float:
    """Tell whether the answer is a wanted one, whatever the case, the spaces and a full stop at the end."""
    return float(any(_plain(answer) == _plain(one) for one in _several(wanted)))


def word_f1(answer: str, wanted: str | Sequence[str]) -> float:
    """Compute the harmonic mean of precision and recall of the answer's words, without articles and punctuation.

    Two texts without a word are equal. Source: P. Rajpurkar et al., SQuAD (arXiv 1606.05250), section 6.
    """
    return max(_f1(_words(answer), _words(one)) for one in _several(wanted))


def anls(answer: str, wanted: str | Sequence[str], least: float = LEAST_SIMILARITY) -> float:
    """Compute 1 - d / n, with the edit distance d and the longer length n in characters; 0 below `least`.

    The mean over questions is the average normalised Levenshtein similarity. Source: A. F. Biten et al., Scene Text
    Visual Question Answering (arXiv 1905.13648), equation 1.
    """
    best = max(_similarity(_spaced(answer), _spaced(one)) for one in _several(wanted))
    return best if best >= least else 0.0


def _several(wanted: str | Sequence[str]) -> Sequence[str]:
    found = [wanted] if isinstance(wanted, str) else wanted
    if not found:
        raise ValueError("wanted has no answer; expected at least one")
    return found


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _plain(text: str) -> str:
    return _spaced(text).removesuffix(".").rstrip()


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"\s+", text.lower().translate(_NO_PUNCTUATION)) if word and word not in ARTICLES]


def _f1(answer: list[str], wanted: list[str]) -> float:
    if not answer or not wanted:
        return float(answer == wanted)
    common = sum((Counter(answer) & Counter(wanted)).values())
    return 2 * common / (len(answer) + len(wanted))


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    return 1 - edit_distance(one, other) / longest if longest else 1.0


def edit_distance(one: str, other: str) -> int:
    """Count the insertions, deletions and exchanges of characters that make one text the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
