"""Answers of multiple choice: which option's letter an answer means, by the rule of each benchmark. None: no letter."""

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase, punctuation

from .vqa import in_one_line, without_signs

# Where a letter may stand in a word: what is before it and behind it. The first that exactly one letter fits counts.
AROUND = tuple(
    form.split("x") for form in ["x.", "x,", "x:", "x)", "x).", "(x)", "(x).", ":x", ":x,", ":x.", ":x)", ":x)."]
)
MOST_WORDS_BESIDE_A = 3
_NO_PUNCTUATION = str.maketrans("", "", punctuation)
_AT_THE_ENDS = (",", ".", "!", "?", ";", ":", "'", '"')
_NOUNS = {"answer": ("", "correct ", "best "), "option": ("correct ", "best "), "choice": ("", "correct ")}
# What announces an answer in English, Korean, Chinese and Japanese.
PHRASES = (
    *(f"{the}{kind}{noun} is" for noun, kinds in _NOUNS.items() for kind in kinds for the in ("", "the ")),
    *("my answer is", "my choice is", "i choose", "i select", "i pick"),
    *(
        "\uc635\uc158",
        "\uc815\ub2f5\uc740",
        "\ub2f5\uc740",
        "\ub2f5:",
        "\u7b54\u6848\u662f",
        "\u7b54\u6848\u4e3a",
        "\u9009",
        "\u7b54\u3048\u306f",
    ),
)
FORMS = ("({})", "{}.", "{}:", "{})", "{} ", "{}")
"""How a letter may be written, the surest form first; the last, anywhere, only where no other fits."""


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
    """A letter alone, in any case, or a capital with a full stop behind it at the beginning ("B. the moon").

    Source: the evaluation of P. Lu et al., ScienceQA (arXiv 2209.09513), as lmms-eval has it.
    """
    text = answer.strip()
    if len(text) == 1:
        return text.upper()
    return text[0] if len(text) > 1 and text[0].isupper() and text[1] == "." else None


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
    found = re.search(r"\b([A-E])\b", without_signs(in_one_line(answer)), re.IGNORECASE)
    return found[1].upper() if found else None


def video_mme_letter(answer: str, choices: str = "ABCD") -> str | None:
    """The letter that an answer begins with, else ends with, else the last one behind a phrase such as "the answer is".

    Where none of these is there, the last letter of the surest form counts: "(A)", "A.", "A:", "A)", "A ", then any.
    Source: C. Fu et al., Video-MME (arXiv 2405.21075), as lmms-eval evaluates it.
    """
    text = answer.strip()
    for sign in _AT_THE_ENDS:
        text = text.strip(sign)
    text = text.strip()
    for letter in choices:
        if text[:1] == letter and not text[1:2].isalpha():
            return letter
    for letter in choices:
        if text[-1:] == letter and not text[-2:-1].isalpha():
            return letter
    text = f" {text} "
    lower, behind = text.lower(), {}
    for start in (lower.find(phrase) + len(phrase) for phrase in PHRASES if phrase in lower):
        for letter in choices:
            behind[letter] = max(behind.get(letter, -1), text.find(letter, start))
    found = [behind, *({letter: text.rfind(form.format(letter)) for letter in choices} for form in FORMS)]
    for places in found:
        if places and max(places.values()) >= 0:
            return max(places, key=places.__getitem__)
    return None
