"""Scores of MMBench: a question is asked with its options in every rotation, and is right only if all of them are."""

from collections.abc import Iterable
from statistics import fmean
from typing import NamedTuple

ROTATIONS_APART = 1_000_000
"""Rows whose index is equal modulo this are one question."""


class Judged(NamedTuple):
    """One rotation of a question."""

    index: int
    category: str | None
    l2_category: str | None
    right: bool


def mmbench(judged: Iterable[Judged]) -> dict:
    """Compute the share of questions with all rotations right, `score`, and that of first rotations right, `vanilla`.

    Both are over the questions whose first rotation (an index below a million) is there; `categories` and
    `l2_categories` have the score of each. Source: Y. Liu et al., MMBench (arXiv 2307.06281), section 4.1.

    Raises ValueError where no first rotation is there.
    """
    rotations: dict[int, list[Judged]] = {}
    for one in judged:
        rotations.setdefault(one.index % ROTATIONS_APART, []).append(one)
    firsts = {one.index: one for rows in rotations.values() for one in rows if one.index < ROTATIONS_APART}
    if not firsts:
        raise ValueError("mmbench: judged has no index below 1,000,000; expected the first rotation of a question")
    right = {index: all(one.right for one in rotations[index]) for index in firsts}
    found = {
        "score": fmean(right.values()),
        "vanilla": fmean(one.right for one in firsts.values()),
        "questions": len(firsts),
    }
    for name, group in (("categories", "category"), ("l2_categories", "l2_category")):
        groups: dict[str, list[bool]] = {}
        for index, one in firsts.items():
            if (of := getattr(one, group)) is not None:
                groups.setdefault(of, []).append(right[index])
        found[name] = {of: fmean(rights) for of, rights in groups.items()}
    return found
