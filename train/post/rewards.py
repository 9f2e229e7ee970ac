"""Rewards of an answer in text: pure functions of the answer and of what is right, each from 0 to 1."""

import re
from collections.abc import Sequence
from fractions import Fraction

from ...evaluate.metrics.text import exact_match, word_f1
from .goals import Goal

NUMBER = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+\u2212]?\.\d+")
LONGEST_NUMBER = 40


def reward_of(name: str, answer: str, goal: Goal, pattern: re.Pattern | None = None) -> float:
    """Score an answer by a reward of this name, other than grounding, which needs the model. `pattern` is `format`."""
    if name == "exact":
        return exact_match(answer, goal.solutions)
    if name == "words":
        return word_f1(answer, goal.solutions)
    if name == "number":
        return number_match(answer, goal.solutions)
    if name == "format" and pattern is not None:
        return float(pattern.fullmatch(answer) is not None)
    if name == "box" and goal.box is not None:
        return box_match(answer, goal.box)
    raise ValueError(f"reward_of: name is {name!r}; expected a reward of text that the row has what it needs for")


def number_match(answer: str, wanted: Sequence[str]) -> float:
    """Tell whether the last number of the answer equals the last number of a wanted one: 1,200.0 is 1200."""
    said = last_number(answer)
    return float(said is not None and any(said == last_number(one) for one in wanted))


def last_number(text: str) -> Fraction | None:
    """The last number in digits, exactly; None where there is none, or one of more characters than a number has."""
    found = NUMBER.findall(text)
    if not found or len(found[-1]) > LONGEST_NUMBER:
        return None
    return Fraction(found[-1].replace(",", "").replace("\u2212", "-"))


def box_match(answer: str, box: Sequence[float]) -> float:
    """Compute the intersection over union of the box in an answer and `box`, both in pixels.

    The answer's box are its first four numbers, x0, y0, x1, y1; `box` is (y0, x0, y1, x1). 0 where there are fewer
    numbers, or they are no box.
    """
    found = NUMBER.findall(answer.replace(",", " "))[:4]
    if len(found) < 4 or max(map(len, found)) > LONGEST_NUMBER:
        return 0.0
    x0, y0, x1, y1 = (float(one.replace("\u2212", "-")) for one in found)
    return intersection_over_union((y0, x0, y1, x1), box)


def intersection_over_union(one: Sequence[float], other: Sequence[float]) -> float:
    """Divide what two boxes (y0, x0, y1, x1) share by what they cover together; 0 where one has no area."""
    if not (has_area(one) and has_area(other)):
        return 0.0
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(height, 0.0) * max(width, 0.0)
    return shared / (_area(one) + _area(other) - shared)


def has_area(box: Sequence[float]) -> bool:
    return box[0] < box[2] and box[1] < box[3]


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
