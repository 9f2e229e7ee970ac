"""Scores of MMMU: choices and open questions, by subject and discipline.

Source: X. Yue et al., MMMU (arXiv 2311.16502), section 4.1, and its published evaluation code.
"""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from .letters import letters

DISCIPLINES = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": (
        "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy Public_Health"
    ),
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": (
        "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power Materials "
        "Mechanical_Engineering"
    ),
}
MORE_WORDS_THAN = 5
"""An answer has to have more for the options' texts to be looked for in it."""
_AT_THE_ENDS = (",", ".", "!", "?", ";", ":", "'")
_BEFORE_AN_ANSWER = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # with commas
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # with an exponent
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def choice_of(answer: str, options: Sequence[str]) -> str | None:
    """Find the letter of the option that an answer chooses; None where it names none.

    "(A)" is looked for first, then "A " and then "A.", and in an answer of more than five words the options' texts; of
    several letters the last one in the answer counts.
    """
    for sign in _AT_THE_ENDS:
        answer = answer.strip(sign)
    text = f" {answer} "
    by_letter = dict(zip(letters(len(options)), options))
    for form, last in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if found := [letter for letter in by_letter if form.format(letter) in text]:
            return max(found, key=lambda letter: text.rfind(last.format(letter)))
    if len(text.split()) > MORE_WORDS_THAN:
        lower = text.lower()
        if found := [letter for letter, option in by_letter.items() if option.lower() in lower]:
            return max(found, key=lambda letter: lower.rfind(by_letter[letter].lower()))
    return None


def guessed(identity: str, options: Sequence[str]) -> str:
    """The letter that stands for an answer that names none: random, and always the same for a question."""
    return letters(len(options))[zlib.crc32(identity.encode()) % len(options)]


def open_answers(answer: str) -> set[str | float]:
    """Collect what an open answer may mean: the shortest ends of its sentences behind "is", "so", "=", and numbers."""
    text = answer.strip().strip(".").lower()
    # By the published pattern a sentence also begins with a capital, of which none is left here: lines count.
    sentences, ends = text.split("\n"), []
    for number, sentence in enumerate(sentences, 1):
        marks = (*_BEFORE_AN_ANSWER, "=") if number == len(sentences) else _BEFORE_AN_ANSWER
        shortest = ""
        for end in (sentence.split(mark)[-1].strip() for mark in marks if mark in sentence):
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in _AT_THE_ENDS:
            ends.append(shortest)
    ends = ends or [text]
    numbers = [number for end in ends for pattern in _NUMBERS for number in pattern.findall(end)]
    return {value for one in (*ends, *numbers) for value in _values(one)}


def open_is_right(answer: str, wanted: str | Sequence[str]) -> bool:
    """Tell whether a wanted text is part of what an answer may mean, or a wanted number equal to it at two decimals."""
    truth = [value for one in ([wanted] if isinstance(wanted, str) else wanted) for value in _values(one)]
    texts = [value for value in truth if isinstance(value, str)]
    return any(
        any(text in given for text in texts) if isinstance(given, str) else given in truth
        for given in open_answers(answer)
    )


def _values(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]  # a letter is part of too much


class Judged(NamedTuple):
    """One question of MMMU."""

    subject: str | None
    """Such as "Art_Theory"; None where it is not known."""
    right: bool


def mmmu(judged: Iterable[Judged]) -> dict:
    """Compute `score`, the share of right answers over all questions, and that of each discipline and subject.

    Raises ValueError for no question.
    """
    judged = list(judged)
    if not judged:
        raise ValueError("mmmu: judged is empty; expected one question or more")
    subjects: dict[str, list[bool]] = {}
    for one in judged:
        if one.subject is not None:
            subjects.setdefault(one.subject, []).append(one.right)
    disciplines = {
        name: [right for subject in inside.split() for right in subjects.get(subject, [])]
        for name, inside in DISCIPLINES.items()
    }
    return {
        "score": fmean([one.right for one in judged]),
        "disciplines": _means(disciplines),
        "subjects": _means(subjects),
    }


def subject_of(identity: str) -> str | None:
    """The subject in an id such as "validation_Art_Theory_3"; None where there is none."""
    found = re.fullmatch(r"[^_]*_(.+?)_\d+", identity)
    return found[1] if found else None


def _means(groups: Mapping[str, list[bool]]) -> dict[str, float]:
    return {name: fmean(rights) for name, rights in groups.items() if rights}
