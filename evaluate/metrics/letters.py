"""Answers of multiple choice: which option's letter an answer means, by the rule of each benchmark. None: no letter."""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase, punctuation

from .vqa import COMMAS, PERIOD, PERIODS, SIGNS

# Where a letter may stand in a word: what is before it and behind it. The first that exactly one letter fits counts.
AROUND = tuple(
    form.split("x") for form in ["x.", "x,", "x:", "x)", "x).", "(x)", "(x).", ":x", ":x,", ":x.", ":x)", ":x)."]
)
MOST_WORDS_BESIDE_A = 3
_NO_PUNCTUATION = str.maketrans("", "", punctuation)
# Removed from an answer to Video-MME. The two long ones are the published list's, which lacks commas between two of
# each: they never occur, so that the B of "Best answer: C" is taken.
VIDEO_MME_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
)


def letters(count: int) -> str:
    """The letters of so many options. Raises ValueError for more than there are."""
    if not 0 < count <= len(ascii_uppercase):
        raise ValueError(f"letters: count is {count}; expected 1 to {len(ascii_uppercase)}")
    return ascii_uppercase[:count]


def option_lines(options: Sequence[str], form: str = "{letter}. {option}") -> str:
    """The options below one another, each with its letter."""
    return "\n".join(
        form.format(letter=letter, option=option) for letter, option in zip(letters(len(options)), options)
    )


def ai2d_letter(answer: str) -> str:
    """The capital before a full stop at the beginning ("B. larva"), else the answer without punctuation, in upper case.

    Right is the option's letter, as in lmms-eval.
    """
    if found := re.match(r"\s*([A-Z])\.", answer):
        return found[1]
    return answer.translate(_NO_PUNCTUATION).strip().upper()


def scienceqa_letter(answer: str) -> str | None:
    """A letter alone, or one with a full stop at the beginning ("B. the moon"): case and spaces count.

    Source: the evaluation of P. Lu et al., ScienceQA (arXiv 2209.09513), as lmms-eval has it.
    """
    if len(answer) == 1 or (len(answer) > 1 and answer[1] == "."):
        return answer[0] if answer[0].isupper() else None
    return None


def mmbench_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter A to E that stands alone in an answer, else the only option whose text the answer contains.

    Letters count as words, then with a sign around them; "A" among more than three words may be an article. Source:
    Y. Liu et al., MMBench (arXiv 2307.06281), section 4.2, without the outside model that it asks where this fails.
    """
    words, candidates = answer.split(), "ABCDE"
    found = [letter for letter in candidates if letter in words]
    if len(found) == 1 and not ("A" in words and len(words) > MOST_WORDS_BESIDE_A):
        return found[0]
    for before, behind in AROUND:
        found = [letter for letter in candidates if f"{before}{letter}{behind}" in words]
        if len(found) == 1:
            return found[0]
    found = [letter for letter, text in options.items() if str(text).lower() in answer.lower()]
    return found[0] if len(found) == 1 else None


def mvbench_letter(answer: str) -> str | None:
    """The letter of "B. text", else the first of A to E that is a word of its own once signs are gone, in any case.

    An article counts ("a cat" is A). Source: K. Li et al., MVBench (arXiv 2311.17005), as lmms-eval evaluates it.
    """
    if found := re.match(r"([A-E])\.\s*.+$", answer.strip(), re.IGNORECASE):
        return found[1].upper()
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    numbered, cleaned = COMMAS["official"].search(text) is not None, text
    for sign in SIGNS:
        beside = f"{sign} " in text or f" {sign}" in text
        cleaned = cleaned.replace(sign, "" if beside or numbered else " ")
    found = re.search(r"\b([A-E])\b", PERIOD.sub("", cleaned, count=PERIODS), re.IGNORECASE)
    return found[1].upper() if found else None


def video_mme_letter(answer: str) -> str | None:
    """The first of A to D in an answer, after set phrases are taken out.

    Source: C. Fu et al., Video-MME (arXiv 2405.21075), as its published code and lmms-eval have it.
    """
    text = answer.strip()
    for prefix in VIDEO_MME_PREFIXES:
        text = text.replace(prefix, "")
    found = re.search("[ABCD]", text)
    return found[0] if found else None
