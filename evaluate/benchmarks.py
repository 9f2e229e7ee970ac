"""The field's benchmarks: their columns, prompts, marks and scores. Prompts and marks are those of lmms-eval."""

import ast
from collections.abc import Callable, Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from ..files.problems import BadRow
from .items import Benchmark, Item, Mark, Marked, Row, absent, image_of, shown, text_of, texts_of, whole
from .metrics.letters import (
    ai2d_letter,
    mmbench_letter,
    mvbench_letter,
    option_lines,
    scienceqa_letter,
    video_mme_letter,
)
from .metrics.mmbench import Judged as Rotation
from .metrics.mmbench import mmbench
from .metrics.mmmu import Judged as Exercise
from .metrics.mmmu import choice_of, guessed, mmmu, open_answers, open_is_right, subject_of
from .metrics.vqa import RULES, normalise, vqa_accuracy
from .metrics.yes_no import ANSWERS, mme, pope, verdict
from .metrics.yes_no import Judged as Seen

SHORTLY = "Answer the question using a single word or phrase."
BY_LETTER = "Answer with the option's letter from the given choices directly."
YES_OR_NO = " Please answer yes or no."
IMAGES_OF_MMMU = 7


def mean_score(marked: Sequence[Marked]) -> float:
    return fmean(one.mark.score for one in marked)


def by_group(marked: Sequence[Marked], of: Callable[[Marked], Any]) -> dict[str, list[Marked]]:
    """The answers of each group, in the order in which groups appear; those of None are left out."""
    groups: dict[str, list[Marked]] = {}
    for one in marked:
        if (name := of(one)) is not None:
            groups.setdefault(str(name), []).append(one)
    return groups


def _means(marked: Sequence[Marked], column: str) -> dict[str, float]:
    return {name: mean_score(inside) for name, inside in by_group(marked, lambda one: one.about.get(column)).items()}


def _identity(row: Row, column: str) -> str | int:
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or absent(value):
        raise BadRow(f"{column} is no id", f"it is {shown(value)}; expected a text or a whole number")
    return value


def _own(row: Row, column: str) -> str | int | None:
    """The id in a column; None where the row has none."""
    return None if absent(row.get(column)) else _identity(row, column)


def _truth(row: Row) -> str:
    truth = text_of(row, "answer").strip().lower().replace(".", "")
    if truth not in ANSWERS:
        raise BadRow("answer is not yes or no", f"it is {shown(row['answer'])}; expected yes or no")
    return truth


def _read_vqa(row: Row) -> Item:
    answers = row["answers"]
    if answers is not None:  # the test split's are not public
        try:
            answers = [one if isinstance(one, str) else str(one["answer"]) for one in answers]
        except (TypeError, KeyError):
            answers = []
        if not answers:
            raise BadRow("answers are no list", f"they are {shown(row['answers'])}; expected those of the annotators")
    about = {name: row[name] for name in ("answer_type", "question_type") if not absent(row.get(name))}
    question = f"{text_of(row, 'question')}\n{SHORTLY}"
    return Item(_identity(row, "question_id"), question, image_of(row), answers, about)


def _mark_vqa(got: str, wanted: list[str] | None, about: dict) -> Mark:
    score = vqa_accuracy(got, wanted) if wanted is not None else 0.0
    return Mark(normalise(got.strip()), score)


def _vqa_scores(marked: Sequence[Marked]) -> dict:
    known = [one for one in marked if one.wanted is not None]
    if not known:
        return {}
    by_rule = {rule: fmean(vqa_accuracy(one.got, one.wanted, rule) for one in known) for rule in RULES}
    return {
        "score": by_rule["official"],
        "harness_score": by_rule["harness"],
        "answer_types": _means(known, "answer_type"),
    }


SUBMITTED = {"question_id", "answer"}
"""Keys of an answer that is submitted."""


def _vqa_submission(marked: Sequence[Marked]) -> list[dict[str, Any]]:
    """The answers whose truth the test split keeps to itself, normalised, as VQA's server takes them."""
    return [{"question_id": one.id, "answer": one.mark.parsed} for one in marked if one.wanted is None]


def _read_pope(row: Row) -> Item:
    question = f"{text_of(row, 'question').strip()}\n{SHORTLY}"
    category, identity = row.get("category"), _own(row, "id")
    if identity is None and (number := _own(row, "question_id")) is not None:
        identity = f"{category}/{number}"  # each category counts its questions
    return Item(identity, question, image_of(row), _truth(row), {"category": category})


def _mark_pope(got: str, wanted: str, about: dict) -> Mark:
    parsed = got.strip().lower()
    return Mark(parsed if parsed in ANSWERS else None, float(parsed == wanted))


def _pope_scores(marked: Sequence[Marked]) -> dict:
    def scores(inside: Sequence[Marked]) -> dict[str, float]:
        return pope([one.got for one in inside], [one.wanted for one in inside])

    groups = by_group(marked, lambda one: one.about.get("category"))
    return {**scores(marked), "categories": {name: scores(inside) for name, inside in groups.items()}}


def _read_mme(row: Row) -> Item:
    question = f"{text_of(row, 'question').strip().replace(YES_OR_NO, '')}\n{SHORTLY}"
    image = str(_identity(row, "question_id"))
    about = {"image": image, "category": text_of(row, "category")}
    # Both questions of an image have its id.
    return Item(f"{about['category']}/{image}/{row['question'].strip()}", question, image_of(row), _truth(row), about)


def _mark_mme(got: str, wanted: str, about: dict) -> Mark:
    parsed = verdict(got)
    return Mark(parsed, float(parsed == wanted))


def _mme_scores(marked: Sequence[Marked]) -> dict:
    return mme(Seen(one.about["image"], one.about["category"], one.mark.score == 1) for one in marked)


def _read_mmmu(row: Row) -> Item:
    identity, kind = _own(row, "id"), text_of(row, "question_type")
    options = row["options"]
    if isinstance(options, str):
        try:
            options = ast.literal_eval(options)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise BadRow("options are no list", f"they are {shown(options)}; expected a list of texts") from None
    question, choices = text_of(row, "question"), ()
    if kind == "multiple-choice":
        choices = tuple(texts_of({"options": options}, "options"))
        prompt = f"{question}\n{option_lines(choices)}\n\n{BY_LETTER}"
    else:
        prompt = f"{question}\n\n{SHORTLY}"
    cells = [row.get(f"image_{i}") for i in range(1, IMAGES_OF_MMMU + 1) if f"<image {i}>" in prompt]
    if not cells or any(absent(cell) for cell in cells):
        raise BadRow("no image", "an image that the question names is empty; expected image_1 and those that follow")
    # The mark of an image's place is a control token of many tokenizers.
    for i in range(1, IMAGES_OF_MMMU + 1):
        prompt = prompt.replace(f"<image {i}>", f"image {i}")
    about = {
        "question": question,
        "options": list(choices),
        "question_type": kind,
        "subject": subject_of(str(identity)),
    }
    return Item(identity, prompt, tuple(cells), _open_truth(row["answer"]), about)


def _open_truth(answer: Any) -> Any:
    """A text, or the list of texts that a text of several answers spells."""
    if isinstance(answer, str) and answer.startswith("["):
        try:
            found = ast.literal_eval(answer)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return answer
        return [str(one) for one in found] if isinstance(found, list) and found else answer
    return answer


def _mark_mmmu(got: str, wanted: Any, about: dict) -> Mark:
    if about["question_type"] == "multiple-choice":
        parsed = choice_of(got, about["options"])
        # An answer that names no option stands for a random one.
        chosen = parsed if parsed is not None else guessed(about["question"], about["options"])
        return Mark(parsed, float(chosen in wanted if isinstance(wanted, list) else chosen == wanted))
    return Mark(sorted(map(str, open_answers(got))), float(open_is_right(got, wanted)))


def _read_ai2d(row: Row) -> Item:
    options, number = texts_of(row, "options"), whole(row, "answer")
    if not 0 <= number < len(options):
        raise BadRow("answer is no option", f"it is {shown(row['answer'])}; expected 0 to {len(options) - 1}")
    question = f"{text_of(row, 'question')}\n{option_lines(options)}\n{BY_LETTER}"
    return Item(_own(row, "id"), question, image_of(row), ascii_uppercase[number], {})


def _mark_letter(parse: Callable[[str], str | None]) -> Callable[[str, Any, dict], Mark]:
    def mark(got: str, wanted: str, about: dict) -> Mark:
        parsed = parse(got)
        return Mark(parsed, float(parsed == wanted))

    return mark


def _ai2d(got: str) -> str | None:
    return letter if len(letter := ai2d_letter(got)) == 1 else None


def _read_scienceqa(row: Row) -> Item:
    choices, number = texts_of(row, "choices"), whole(row, "answer")
    if not 0 <= number < len(choices):
        raise BadRow("answer is no option", f"it is {shown(row['answer'])}; expected 0 to {len(choices) - 1}")
    context = "" if absent(row.get("hint")) else f"Context: {row['hint']}\n"
    question = f"{context}{text_of(row, 'question')}\n{option_lines(choices)}\n{BY_LETTER}"
    about = {name: row[name] for name in ("subject", "grade") if not absent(row.get(name))}
    return Item(_own(row, "id"), question, image_of(row), ascii_uppercase[number], about)


def _read_mmbench(row: Row) -> Item:
    options = {letter: str(row[letter]) for letter in "ABCDE" if not absent(row.get(letter))}
    wanted = text_of(row, "answer").strip()
    if wanted not in options:
        raise BadRow("answer is no option", f"it is {shown(row['answer'])}; expected one of {', '.join(options)}")
    hint = "" if absent(row.get("hint")) else f"{row['hint']} "
    lines = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    question = f"{hint}{text_of(row, 'question')} There are several options:\n{lines}\n{BY_LETTER}"
    l2_category = next((row[name] for name in ("L2-category", "l2-category", "L2_category") if name in row), None)
    about = {"options": options, "category": row.get("category"), "l2_category": l2_category}
    return Item(whole(row, "index"), question, image_of(row), wanted, about)


def _mark_mmbench(got: str, wanted: str, about: dict) -> Mark:
    parsed = mmbench_letter(got, about["options"])
    return Mark(parsed, float(parsed == wanted))


def _mmbench_scores(marked: Sequence[Marked]) -> dict:
    return mmbench(
        Rotation(one.id, one.about["category"], one.about["l2_category"], one.mark.score == 1) for one in marked
    )


def _read_mvbench(row: Row) -> Item:
    candidates, answer = texts_of(row, "candidates"), row["answer"]
    if answer not in candidates:
        raise BadRow("answer is no option", f"it is {shown(answer)}; expected one of the candidates")
    lines = option_lines(candidates, "({letter}) {option}")
    question = f"Question:{text_of(row, 'question')}\nOption:\n{lines}\nOnly give the best option."
    task, video = row.get("task", row.get("task_type")), text_of(row, "video")
    about = {"task": task}
    wanted = ascii_uppercase[candidates.index(answer)]
    return Item(_own(row, "id"), question, (), wanted, about, video, text_of(row, "question"), tuple(candidates))


def _read_video_mme(row: Row) -> Item:
    options, wanted = texts_of(row, "options"), text_of(row, "answer").strip().upper()
    if wanted not in ascii_uppercase[: len(options)]:
        raise BadRow("answer is no option", f"it is {shown(row['answer'])}; expected a letter of the options")
    question = (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        f"letter (A, B, C, or D) of the correct option.\n{text_of(row, 'question')}\n"
        + "\n".join(options)
        + "\nThe best answer is:"
    )
    about = {name: row.get(name) for name in ("duration", "domain", "sub_category", "task_type")}
    # The options come with their letters ("A. A dog."); a choice among them adds its own.
    bare = tuple(option.removeprefix(f"{letter}. ") for letter, option in zip(ascii_uppercase, options))
    video = row.get("video") if not absent(row.get("video")) else f"{text_of(row, 'videoID')}.mp4"
    return Item(_identity(row, "question_id"), question, (), wanted, about, video, text_of(row, "question"), bare)


CHOSEN = "chosen"
"""Key of `about` with the letter of the option that has the lowest mean cross-entropy."""


def _grouped(*columns: str) -> Callable[[Sequence[Marked]], dict]:
    """The mean score, and that of each group by columns of `about`."""

    def scores(marked: Sequence[Marked]) -> dict:
        groups = {f"{column}s": _means(marked, column) for column in columns}
        found = {"score": mean_score(marked)} | {name: means for name, means in groups.items() if means}
        if all(CHOSEN in one.about for one in marked):
            found["loss_score"] = fmean(one.about[CHOSEN] == one.wanted for one in marked)
        return found

    return scores


def _mmmu_scores(marked: Sequence[Marked]) -> dict:
    return mmmu(Exercise(one.about["subject"], one.mark.score == 1) for one in marked)


IMAGE_BENCHMARKS = (
    Benchmark(
        "vqav2",
        "VQAv2",
        "lmms-lab-encoder/VQAv2",
        "validation",
        ("image", "question", "answers", "question_id"),
        _read_vqa,
        _mark_vqa,
        _vqa_scores,
        submission=_vqa_submission,
        published={"score": 0.766},
    ),
    Benchmark(
        "pope",
        "POPE",
        "lmms-lab-encoder/POPE",
        "test",
        ("image", "question", "answer"),
        _read_pope,
        _mark_pope,
        _pope_scores,
        main="f1",
        published={"f1": 0.694},
    ),
    Benchmark(
        "ai2d",
        "AI2D",
        "lmms-lab-encoder/ai2d",
        "test",
        ("image", "question", "options", "answer"),
        _read_ai2d,
        _mark_letter(_ai2d),
        _grouped(),
        published={"score": 0.462},
    ),
    Benchmark(
        "mmmu",
        "MMMU, validation",
        "lmms-lab-encoder/MMMU",
        "validation",
        ("question", "options", "question_type", "answer", "image_1"),
        _read_mmmu,
        _mark_mmmu,
        _mmmu_scores,
        published={"score": 0.264},
    ),
    Benchmark(
        "mme",
        "MME",
        "lmms-lab-encoder/MME",
        "test",
        ("image", "question_id", "category", "question", "answer"),
        _read_mme,
        _mark_mme,
        _mme_scores,
        published={"perception": 1376.2},
    ),
    Benchmark(
        "scienceqa",
        "ScienceQA, images",
        "lmms-lab-encoder/ScienceQA",
        "test",
        ("image", "question", "choices", "answer"),
        _read_scienceqa,
        _mark_letter(scienceqa_letter),
        _grouped("subject"),
        subset="ScienceQA-IMG",
        published={"score": 0.567},
    ),
    Benchmark(
        "mmbench",
        "MMBench, development",
        "lmms-lab-encoder/MMBench",
        "dev",
        ("image", "index", "question", "answer", "A", "B"),
        _read_mmbench,
        _mark_mmbench,
        _mmbench_scores,
        subset="en",
        published={"score": 0.646},
    ),
)
VIDEO_BENCHMARKS = (
    Benchmark(
        "mvbench",
        "MVBench",
        "OpenGVLab/MVBench",
        "train",
        ("video", "question", "candidates", "answer"),
        _read_mvbench,
        _mark_letter(mvbench_letter),
        _grouped("task"),
    ),
    Benchmark(
        "video-mme",
        "Video-MME",
        "lmms-lab/Video-MME",
        "test",
        ("question_id", "question", "options", "answer"),
        _read_video_mme,
        _mark_letter(video_mme_letter),
        _grouped("duration", "domain", "sub_category", "task_type"),
    ),
)
BENCHMARKS = {one.name: one for one in (*IMAGE_BENCHMARKS, *VIDEO_BENCHMARKS)}
