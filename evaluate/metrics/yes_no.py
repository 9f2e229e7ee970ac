"""Scores of questions with the answers yes and no: POPE and MME."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

ANSWERS = ("yes", "no")
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
LETTERS_OF_A_VERDICT = 4


def pope(answers: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Compute accuracy, precision, recall, F1 and the share of "yes" among the answers, each 0 to 1.

    "yes" is the positive class. An answer is "yes" or "no" in any case and with spaces around it; anything else is
    wrong, and counts neither as a false positive nor as a false negative, as in lmms-eval. `yes_ratio` is that of the
    answers (lmms-eval reports that of the truth). `f1` is the score that VLMEvalKit calls Overall. A ratio of nothing
    is 0. Source: Y. Li et al., Evaluating Object Hallucination (arXiv 2305.10355), section 5.

    Raises ValueError for sequences of different lengths or of none, and for a truth that is neither yes nor no.
    """
    if len(answers) != len(wanted) or not answers:
        raise ValueError(
            f"pope: answers and wanted have {len(answers)} and {len(wanted)}; expected as many, one or more"
        )
    given, truth = ([text.strip().lower() for text in texts] for texts in (answers, wanted))
    if odd := next((text for text in truth if text not in ANSWERS), None):
        raise ValueError(f"pope: wanted has {odd!r}; expected yes or no")
    pairs = list(zip(given, truth))
    right, false_yes, missed = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    precision, recall = _share(right, right + false_yes), _share(right, right + missed)
    return {
        "accuracy": _share(sum(one == other for one, other in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(given.count("yes"), len(given)),
    }


def verdict(answer: str) -> str | None:
    """Find "yes" or "no" in the first four characters of an answer without its full stops; None where it is neither.

    "y" and "n" alone count. Where both are there it is "yes". Source: the evaluation code of MME as lmms-eval has it.
    """
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text)
    return next((word for word in ANSWERS if word in text[:LETTERS_OF_A_VERDICT]), None)


class Judged(NamedTuple):
    """One question of MME."""

    question_id: str
    """That of its image: two questions share it."""
    category: str
    right: bool


def mme(judged: Iterable[Judged]) -> dict:
    """Compute the scores of MME: of each category accuracy + accuracy+ in percent, at most 200, and their sums.

    accuracy    the share of right answers
    accuracy+   the share of images with both questions right

    Returns `categories` (category -> score), `perception` (at most 2,000), `cognition` (at most 800) and `score`, their
    sum; of categories without a question nothing is added. Source: C. Fu et al., MME (arXiv 2306.13394), section 2.2.

    Raises ValueError for an unknown category, and for an image without exactly two questions.
    """
    by_image: dict[str, dict[str, list[bool]]] = {}
    for one in judged:
        if one.category not in (*PERCEPTION, *COGNITION):
            raise ValueError(f"mme: category is {one.category!r}; expected one of {', '.join(PERCEPTION + COGNITION)}")
        by_image.setdefault(one.category, {}).setdefault(one.question_id, []).append(one.right)
    scores = {}
    for category, images in by_image.items():
        if odd := next((name for name, rights in images.items() if len(rights) != 2), None):
            raise ValueError(f"mme: image {odd} of {category} has {len(images[odd])} questions; expected 2")
        each = sum(sum(rights) for rights in images.values()) / (2 * len(images))
        both = sum(all(rights) for rights in images.values()) / len(images)
        scores[category] = 100 * (each + both)
    perception, cognition = (sum(scores.get(name, 0.0) for name in names) for names in (PERCEPTION, COGNITION))
    return {"categories": scores, "perception": perception, "cognition": cognition, "score": perception + cognition}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
