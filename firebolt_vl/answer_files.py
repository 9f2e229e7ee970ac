"""The files of a batch: its questions, its answers, and the list of what could not be answered.

A row of the questions is {"image": path, or list of paths, or absent; "question": text; "id": text or integer, by
default the number of the line}; other keys are left alone. A row without the key `image` is a question about no image.
One that has the key and names none, or spells it another way, is refused: an answer without a look would pass for one.
A row of the answers is there whole and once, or not at all, and says what answered it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import Misuse
from .evaluate.items import meant_for_image
from .files.reading import lines_of, parse_json
from .files.writing import OutputError, check_output, followed, words, write_text
from .row_files import ANOTHER, RowFile, Rows

MOST_SHOWN = 60


class Question(NamedTuple):
    line: int
    id: str | int
    question: str
    images: list[str]

    @property
    def key(self) -> str:
        return json.dumps(self.id)  # 1 and "1" are two


class Answer(NamedTuple):
    asked: Question
    answer: str
    complete: bool
    """Whether the model ended the answer itself, before it ran out of tokens."""
    prompt_tokens: int
    answer_tokens: int
    probability: float
    """The geometric mean over the answer's tokens, its end included, of the probability that each was chosen with."""
    doubts: list[str] | None
    """What of the question and the images is unlike what the model was made for; None where it does not say that."""

    def to_json(self, by: dict) -> str:
        """The row, with what answered it."""
        row = {"id": self.asked.id, "image": self.asked.images, "question": self.asked.question}
        row |= {name: getattr(self, name) for name in ("answer", "complete", "prompt_tokens", "answer_tokens")}
        row["probability"] = round(self.probability, 4)
        if self.doubts is not None:
            row["doubts"] = self.doubts
        return json.dumps({**row, "by": by}, ensure_ascii=False)


class Problem(NamedTuple):
    """A row that cannot be answered, and why."""

    line: int
    id: str | int | None
    error: str

    def to_json(self) -> str:
        return json.dumps(self._asdict(), ensure_ascii=False)


def problems_of(out: str) -> Path:
    """Return the file for what could not be answered: beside the answers, a.errors.jsonl for a.jsonl."""
    path = Path(out)
    return path.with_name(f"{path.name.removesuffix('.jsonl')}.errors.jsonl")


def read_questions(path: str) -> tuple[list[Question], list[Problem]]:
    """The rows that are questions, and those that are not. Raises Misuse where there is no such file."""
    asked, bad, lines = [], [], {}
    try:
        for number, line in enumerate(lines_of(Path(path)), 1):
            if not line.strip():
                continue
            row = _question(number, line)
            if isinstance(row, Question) and (first := lines.setdefault(row.key, number)) != number:
                row = Problem(number, row.id, f"id is {row.key}, as in line {first}; give it another one")
            (asked if isinstance(row, Question) else bad).append(row)
    except FileNotFoundError:
        raise Misuse(f"--batch: {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise Misuse(f"--batch is {path}, which cannot be read ({words(error)}); check the file") from None
    return asked, bad


def _question(number: int, line: bytes) -> Question | Problem:
    try:
        row = parse_json(line)
    except ValueError as error:
        return Problem(number, None, f"the row is not valid JSON ({error})")
    if not isinstance(row, dict):
        return Problem(number, None, f'the row is {_shown(row)}; expected {{"image": ..., "question": ...}}')
    name = row.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        return Problem(number, None, f"id is {_shown(name)}; expected a text or an integer")
    if "question" not in row:
        return Problem(number, name, "question is missing; expected a text")
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        return Problem(number, name, f"question is {_shown(question)}; expected a text that is not empty")
    try:
        images = _images(row)
    except ValueError as error:
        return Problem(number, name, str(error))
    return Question(number, _whole_characters(name), _whole_characters(question), images)


def _images(row: dict) -> list[str]:
    """The images of a row: none where it has no such key. Raises ValueError."""
    if "image" not in row:
        if meant := meant_for_image(row):
            raise ValueError(f"{meant} is not a known key; did you mean image?")
        return []
    images = row["image"]
    images = [images] if isinstance(images, str) or images is None else images
    if not isinstance(images, list) or not all(isinstance(image, str) or image is None for image in images):
        raise ValueError(f"image is {_shown(row['image'])}; expected a path or a list of paths")
    if not images or not all(image and image.strip() for image in images):
        raise ValueError("image is empty; expected a path, or leave it out to ask about no image")
    if bad := [image for image in images if "\0" in image or image != _whole_characters(image)]:
        raise ValueError(f"image is {bad[0]!r}; expected a path that can exist")
    return images


def _shown(value: object) -> str:
    """Return a value of a row as JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _whole_characters(value: str | int) -> str | int:
    """Replace halves of a surrogate pair, which JSON allows."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


COLUMNS, WHAT = ("id", "question", "image", "answer"), "answer"


def read_answers(out: str | Path) -> Rows:
    """The answers of a file that another process may be writing. Raises Misuse."""
    return Rows("--out", str(out), COLUMNS, WHAT).read()


def check_answers(answers: Rows, asked: Sequence[Question], by: dict, mixed: bool) -> set[str]:
    """The keys of the questions that have their answer in a file.

    Raises Misuse where it answers another question, and, unless `mixed`, where another model or other settings than
    `by` gave it.
    """
    there = {row.key for row in asked if row.key in answers.rows}
    for row in asked:
        found = answers.rows.get(row.key)
        if found is None:
            continue
        if (found["question"], found["image"]) != (row.question, row.images):
            raise Misuse(
                f"--out is {answers.out}, whose line {found['line']} answers another question than the one with id "
                f"{row.key} in line {row.line}; {ANOTHER}"
            )
        if not mixed:
            answers.check_by(found, by, f"{ANOTHER}, or say --mixed to keep both")
    return there


class AnswerFile(RowFile):
    """The file of answers, open for this process alone. What an interrupted run left unfinished is cut off."""

    def __init__(self, out: str, inputs: Sequence[tuple[str, str | Path]], say: Callable[[str], None]):
        super().__init__("--out", out, inputs, say, COLUMNS, WHAT)

    def add(self, answers: Sequence[Answer], by: dict) -> None:
        """Append the answers, each a whole line, and wait until the disk has them."""
        self.append([answer.to_json(by) for answer in answers])


def write_problems(file: Path, problems: Sequence[Problem]) -> None:
    """Write a list of problems whole; where there are none there is no file."""
    if problems:
        write_text(file, "".join(problem.to_json() + "\n" for problem in problems))
    else:
        followed(file).unlink(missing_ok=True)


class ProblemFile:
    """The rows that could not be answered in this run; no file where there are none.

    Raises Misuse where a file of that name is one of `inputs`, or is no such list.
    """

    def __init__(self, path: Path, out: str, inputs: Sequence[tuple[str, str | Path]]):
        self.path, self.count, self.file = followed(path), 0, None
        name = f"the list of problems of --out {out}"
        try:
            check_output(name, path, inputs, _is_problem_list, hint="move it away, or name another --out")
        except OutputError as error:
            raise Misuse(str(error)) from None

    def __enter__(self) -> "ProblemFile":
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, problem: Problem) -> None:
        if self.file is None:
            self.file = open(self.path, "x", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.count += 1
        self.file.write(problem.to_json() + "\n")


def read_problems(file: Path) -> list[Problem]:
    """The problems in a list of them; none where there is no such file, or where it is another one."""
    try:
        if not _is_problem_list(file):
            return []
        *lines, _ = file.read_bytes().split(b"\n")
    except OSError:
        return []
    return [Problem(**parse_json(line)) for line in lines]


def _is_problem_list(file: Path) -> bool:
    """Tell whether each whole line is a problem's row; a run that was killed may have left half of one."""
    *lines, rest = file.read_bytes().split(b"\n")
    try:
        rows = [parse_json(line) for line in lines]
    except ValueError:
        return False
    wanted = set(Problem._fields)
    begun = b'{"line": '
    return all(isinstance(row, dict) and set(row) == wanted for row in rows) and (
        bool(rows) or begun.startswith(rest[: len(begun)])
    )
