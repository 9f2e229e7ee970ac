"""Questions of one's own as a benchmark: rows as training has them, scored as text and by where answers come from.

    {"image": "photos/1.jpg", "question": ..., "answer": ...}          or "answers": [...], any of which is right
    {"image": "photos/1.jpg", "conversations": [...]}                  a question and its answer, as for training

`kind` groups questions. `box` [x0, y0, x1, y1], in pixels of the image, is where the answer is to be seen.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean
from typing import Any

from ..files.problems import BadRow
from .benchmarks import by_group
from .items import Benchmark, Item, Mark, Marked, Row, absent, meant_for_image, no_column, shown, text_of
from .metrics.grounding import THRESHOLDS, Fit
from .metrics.text import anls, exact_match, word_f1
from .metrics.vqa import ENOUGH, vqa_accuracy

NO_KIND = "none"
TURNS = ("human", "assistant")


def _read(row: Row) -> Item:
    question, wanted = _conversation(row["conversations"]) if "conversations" in row else _question(row)
    image = row.get("image")
    if meant := meant_for_image(row):
        raise BadRow("no image", f"{meant} is not a known key; did you mean image?")
    if isinstance(image, str) and absent(image):
        raise BadRow("no image", "image is empty; expected a path, or leave it out to ask about no image")
    images = () if absent(image) else tuple(image) if isinstance(image, list) else (image,)
    about: dict[str, Any] = {"kind": NO_KIND if absent(row.get("kind")) else str(row["kind"])}
    if not absent(row.get("box")):
        if len(images) != 1:
            raise BadRow("box without an image", f"the row has {len(images)} images; expected one where a box is")
        about["box"] = _box(row["box"])
    identity = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int | None):
        raise BadRow("id is no id", f"it is {shown(identity)}; expected a text or a whole number")
    return Item(identity, question, images, wanted, about)


def _question(row: Row) -> tuple[str, list[str]]:
    for column in ("question", *(() if not absent(row.get("answers")) else ("answer",))):
        if column not in row:
            raise no_column(row, column)
    answers = row["answers"] if not absent(row.get("answers")) else [row["answer"]]
    wanted = [str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one for one in answers]
    if not wanted or not all(isinstance(one, str) and one.strip() for one in wanted):
        raise BadRow(
            "no answer", f"answer is {shown(row.get('answer', row.get('answers')))}; expected texts with words"
        )
    return text_of(row, "question"), wanted


def _conversation(turns: Any) -> tuple[str, list[str]]:
    known = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not known or tuple(turn.get("from") for turn in turns) != TURNS:
        raise BadRow("no question and answer", f"conversations are {shown(turns)}; expected one turn of each")
    question, answer = (text_of(turn, "value") for turn in turns)
    return question, [answer]


def _box(value: Any) -> list[float]:
    """Read [x0, y0, x1, y1] as (y0, x0, y1, x1)."""
    try:
        x0, y0, x1, y1 = map(float, value)
    except (TypeError, ValueError):
        raise BadRow("box is no box", f"it is {shown(value)}; expected [x0, y0, x1, y1]") from None
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise BadRow("box is no box", f"it is {shown(value)}; expected 0 <= x0 < x1 and 0 <= y0 < y1")
    return [y0, x0, y1, x1]


def _mark(got: str, wanted: list[str], about: dict) -> Mark:
    return Mark(got.strip() or None, exact_match(got, wanted))


def _scores(marked: Sequence[Marked]) -> dict:
    """The scores of all questions, and of each kind."""
    kinds = by_group(marked, lambda one: one.about["kind"])
    found = _means(marked)
    if set(kinds) != {NO_KIND}:
        found["kinds"] = {kind: _means(inside) for kind, inside in kinds.items()}
    return found


def _means(marked: Sequence[Marked]) -> dict:
    """Exact match (`score`), F1 of words, ANLS; VQA's accuracy where each question has three answers or more."""
    found = {
        "rows": len(marked),
        "score": fmean(one.mark.score for one in marked),
        "word_f1": fmean(word_f1(one.got, one.wanted) for one in marked),
        "anls": fmean(anls(one.got, one.wanted) for one in marked),
        "majority": majority(marked),
    }
    if all(len(one.wanted) >= ENOUGH for one in marked):
        found["vqa_accuracy"] = fmean(vqa_accuracy(one.got, one.wanted) for one in marked)
    return found


def majority(marked: Sequence[Marked]) -> float:
    """Compute the exact match that the commonest answer of each kind, given to all of its questions, would have."""
    said = commonest(marked, lambda one: one.about["kind"])
    return fmean(exact_match(said[one.about["kind"]], one.wanted) for one in marked)


def commonest(marked: Sequence[Marked], of: Callable[[Marked], str]) -> dict[str, str]:
    """The commonest of the right answers of each group, the first of equal ones."""
    groups = by_group(marked, of)
    return {
        name: Counter(one.wanted[0].strip().lower() for one in inside).most_common(1)[0][0]
        for name, inside in groups.items()
    }


def with_other_images(items: Iterable[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
    """The same questions about the next row's image that is another; about the first one's at the end.

    A question without an image, or of a file with one image only, has no such other, and is left out.
    """
    first: tuple | None = None
    waiting: list[tuple[int, Item]] = []
    for place, item in items:
        if not item.images:
            continue
        first = first or item.images
        ready = waiting if waiting and _keys(waiting[0][1].images) != _keys(item.images) else []
        yield from ((number, one._replace(images=item.images)) for number, one in ready)
        waiting = [*([] if ready else waiting), (place, item)]
    for number, one in waiting:
        if first is not None and _keys(first) != _keys(one.images):
            yield number, one._replace(images=first)


def _keys(images: Sequence[Any]) -> list[str]:
    return [image.key for image in images]


def grounding_scores(fits: Sequence[Fit]) -> dict:
    """The means of groundings: `pointing` and its `chance`, `inside`, and `iou` by threshold."""
    return {
        "questions": len(fits),
        "pointing": fmean(one.pointing for one in fits),
        "chance": fmean(one.chance for one in fits),
        "inside": fmean(one.inside for one in fits),
        "iou": {str(threshold): fmean(one.iou[threshold] for one in fits) for threshold in THRESHOLDS},
    }


OWN = Benchmark("own", "own questions", "", "train", (), _read, _mark, _scores)
