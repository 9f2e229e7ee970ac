"""Many questions out of one file of JSON lines, answered into another, whatever happens in between.

A row of the questions is {"image": path, or list of paths, or absent; "question": text; "id": text or integer, by
default the number of the line}. Paths are looked for beside the file. A row of the answers is there whole and once, or
not at all: it is appended in one piece and on the disk before the next rows are worked on. A row that cannot be
answered is no answer: it stands in a file of its own beside the answers, and is tried again by the next run.
"""

import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .ask import prompt, room_for_answer, specials, stops
from .checkpoint import Loaded, choose_device, load, locate, quiet
from .errors import Failure, Misuse, first_line

if TYPE_CHECKING:
    from torch import Tensor


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

    def to_json(self) -> str:
        row = {"id": self.asked.id, "image": self.asked.images, "question": self.asked.question}
        row |= {name: getattr(self, name) for name in ("answer", "complete", "prompt_tokens", "answer_tokens")}
        return json.dumps(row, ensure_ascii=False)


class Problem(NamedTuple):
    """A row that cannot be answered, and why."""

    line: int
    id: str | int | None
    error: str


@dataclass
class Done:
    questions: int
    before: int
    """How many were answered by earlier runs."""
    answered: int
    bad: int
    tokens: int
    seconds: float
    problems: str
    """The file with the rows that could not be answered; it is there only where there are some."""

    def to_dict(self) -> dict:
        return asdict(self)


def answer_file(
    questions: str,
    out: str,
    *,
    checkpoint: str | None = None,
    max_new_tokens: int = 128,
    batch_size: int = 8,
    device: str = "auto",
    seed: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda problem: None,
    **how,
) -> Done:
    """Answer the rows of the file `questions` that the file `out` has no answer to yet.

    With a `seed` answers are sampled, one by one, so that each is the same in whichever run it comes. `progress(done,
    total)` is called after each batch, `report` with a line "file:line: what is wrong" for each row that cannot be
    answered. `how` goes to `checkpoint.load`: dtype, quantize, compile_step.

    Raises:
        Misuse, Failure: what cannot be done at all, in one line.
    """
    if max_new_tokens < 1:
        raise Misuse(f"--max-new-tokens is {max_new_tokens}; at least 1 is wanted")
    place, folder = choose_device(device), locate(checkpoint)
    asked, bad = read_questions(questions)
    listed = Path(out).with_name(f"{Path(out).stem}.errors.jsonl")
    with AnswerFile(out, questions) as answers, ProblemFile(listed) as problems:
        there = answers.keep_for(asked)
        todo = [row for row in asked if row.key not in there]

        def refuse(rows: Iterable[Problem]) -> None:
            for row in rows:
                problems.add(row)
                report(f"{questions}:{row.line}: {row.error}")

        refuse(bad)
        done = Done(len(asked) + len(bad), len(asked) - len(todo), 0, 0, 0, 0.0, str(listed))
        progress(done.before, len(asked))
        if todo:
            with quiet():
                loaded = load(folder, place, **how)
                start = time.perf_counter()
                base = Path(questions).parent
                answering = Answering(loaded, base, max_new_tokens, seed)
                for rows in batches(todo, 1 if seed is not None else batch_size):
                    found = answering.answer(rows)
                    made = [row for row in found if isinstance(row, Answer)]
                    answers.add(made)
                    refuse(row for row in found if isinstance(row, Problem))
                    done.answered += len(made)
                    done.tokens += sum(row.answer_tokens for row in made)
                    done.seconds = time.perf_counter() - start
                    progress(done.before + done.answered + problems.count - len(bad), len(asked))
        done.bad = problems.count
    return done


def batches(rows: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def read_questions(path: str) -> tuple[list[Question], list[Problem]]:
    """The rows that are questions, and those that are not. Raises Misuse where there is no such file."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise Misuse(f"--batch {path} cannot be read ({error.strerror}); check the path") from None
    asked, bad, lines_of = [], [], {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _question(number, line)
        if isinstance(row, Question) and (first := lines_of.setdefault(row.key, number)) != number:
            row = Problem(number, row.id, f"id {row.key} is that of line {first} already; give it another one")
        (asked if isinstance(row, Question) else bad).append(row)
    return asked, bad


def _question(number: int, line: bytes) -> Question | Problem:
    try:
        row = json.loads(line)
    except ValueError as error:
        return Problem(number, None, f"no JSON ({first_line(error)})")
    if not isinstance(row, dict):
        return Problem(number, None, 'no JSON object; {"image": ..., "question": ...} is wanted')
    name = row.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        return Problem(number, None, "id: text or an integer is wanted")
    question, images = row.get("question"), row.get("image")
    if not isinstance(question, str) or not question.strip():
        return Problem(number, name, "question: text that is not empty is wanted")
    images = [] if images is None else [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        return Problem(number, name, "image: a path, a list of paths or nothing is wanted")
    question = question.encode("utf-8", "replace").decode("utf-8")  # halves of a surrogate pair, which JSON allows
    return Question(number, name, question, images)


class AnswerFile:
    """The file of answers, open for this process alone. What an interrupted run left unfinished is cut off."""

    def __init__(self, out: str, questions: str):
        self.out = out
        path = Path(out)
        if not path.parent.is_dir():
            raise Misuse(f"--out {out}: there is no directory {path.parent}; make it first")
        if path.exists() and (not path.is_file() or path.samefile(questions)):
            raise Misuse(f"--out {out}: name a file of its own for the answers")
        try:
            self.file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise Misuse(f"--out {out} cannot be written ({error.strerror}); name a place that can") from None
        try:
            _lock(self.file, out)
            self.rows = self._read()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def _read(self) -> dict[str, dict]:
        self.file.seek(0)
        content = self.file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self.file.truncate(whole)
            os.fsync(self.file.fileno())
        rows = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                rows[json.dumps(row["id"])] = {"question": row["question"], "image": row["image"], "line": number}
            except (ValueError, TypeError, KeyError):
                raise Misuse(f"--out {self.out}:{number} is no answer of this command; name another file") from None
        return rows

    def keep_for(self, asked: Sequence[Question]) -> set[str]:
        """The keys of the questions that have their answer. Raises Misuse where it answers another question."""
        there = {row.key for row in asked if row.key in self.rows}
        for row in asked:
            found = self.rows.get(row.key)
            if found is not None and (found["question"], found["image"]) != (row.question, row.images):
                raise Misuse(
                    f"--out {self.out}:{found['line']} answers another question than the one with id {row.key} in "
                    f"line {row.line}; name another file"
                )
        return there

    def add(self, answers: Sequence[Answer]) -> None:
        """Append the answers, each a whole line, and wait until the disk has them."""
        if not answers:
            return
        try:
            for answer in answers:
                line = (answer.to_json() + "\n").encode()
                while line:
                    line = line[self.file.write(line) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            raise Failure(
                f"--out {self.out} could not be written ({error.strerror}); start the command again"
            ) from None


class ProblemFile:
    """The rows that could not be answered in this run; no file where there are none."""

    def __init__(self, path: Path):
        self.path, self.count, self.file = path, 0, None

    def __enter__(self) -> "ProblemFile":
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(self, *_) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, problem: Problem) -> None:
        if self.file is None:
            self.file = open(self.path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        self.count += 1
        self.file.write(json.dumps(problem._asdict(), ensure_ascii=False) + "\n")


def _lock(file, out: str) -> None:
    """Two runs would give the same answers twice; the lock goes when its process does, however that ends."""
    try:
        import fcntl
    except ModuleNotFoundError:  # there is none on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Misuse(f"--out {out}: another run is writing there; wait for it or name another file") from None


class View(NamedTuple):
    """One image as the connector takes it: grids [G,D_v] and their boxes [G,4]."""

    features: "Tensor"
    boxes: "Tensor"


class Answering:
    """A model at work on the rows of a file. Images are encoded once, however often they are asked about."""

    KEPT = 256
    """How many images are remembered, those used last: some megabytes."""

    def __init__(self, loaded: Loaded, base: Path, max_new_tokens: int, seed: int | None):
        self.loaded, self.base, self.max_new_tokens, self.seed = loaded, base, max_new_tokens, seed
        self.views: OrderedDict[str, View] = OrderedDict()

    def answer(self, rows: Sequence[Question]) -> list[Answer | Problem]:
        """One answer or problem for each row, in their order."""
        problems = self._look_at(rows)
        texts = {}
        for row in rows:
            if row.line in problems:
                continue
            text = prompt(self.loaded, row.question, len(row.images))
            tokens = self.loaded.processor.tokenizer(text, **specials(self.loaded, text)).input_ids
            try:
                room_for_answer(self.loaded.model, len(tokens))
            except Failure as error:
                problems[row.line] = str(error)
                continue
            texts[row.line] = tokens
        good = [row for row in rows if row.line in texts]
        answers = {answer.asked.line: answer for answer in self._together_or_one_by_one(good, texts, problems)}
        while len(self.views) > self.KEPT:
            self.views.popitem(last=False)
        return [
            answers[row.line] if row.line in answers else Problem(row.line, row.id, problems[row.line]) for row in rows
        ]

    def _look_at(self, rows: Sequence[Question]) -> dict[int, str]:
        """Encode the images that are not remembered, together. Returns what is wrong, by line."""
        import torch

        from .model.images import open_image

        problems, opened = {}, {}
        for row in rows:
            for name in row.images:
                if name in self.views:
                    self.views.move_to_end(name)
                elif name not in opened:
                    try:
                        opened[name] = open_image(self.base / name)
                    except (ValueError, OSError) as error:  # not there, or not an image
                        problems[row.line] = first_line(error)
        # A second row with the same bad image is as bad: it was tried again above, with the same result.
        if opened:
            inputs = self.loaded.processor.image_processor([[image] for image in opened.values()], return_tensors="pt")
            with torch.no_grad():
                seen = self.loaded.model.get_grids(**inputs.to(self.loaded.model.device))
            for name, features, mask, boxes in zip(opened, seen.features, seen.mask, seen.boxes):
                self.views[name] = View(features[mask], boxes[mask])
        return problems

    def _together_or_one_by_one(
        self, rows: Sequence[Question], texts: dict[int, list[int]], problems: dict[int, str]
    ) -> list[Answer]:
        """In one batch; where that is too much for the memory or for the positions, each row alone."""
        if not rows:
            return []
        longest = max(len(texts[row.line]) for row in rows)
        fits = room_for_answer(self.loaded.model, longest) >= self.max_new_tokens
        if fits or len(rows) == 1:
            try:
                return self._generate(rows, [texts[row.line] for row in rows])
            except (RuntimeError, MemoryError) as error:
                if len(rows) == 1:
                    problems[rows[0].line] = f"the model could not answer: {first_line(error)}"
                    return []
        return [
            answer
            for row in rows
            for answer in self._together_or_one_by_one([row], {row.line: texts[row.line]}, problems)
        ]

    def _generate(self, rows: Sequence[Question], texts: Sequence[list[int]]) -> list[Answer]:
        import torch

        model = self.loaded.model
        padded = self.loaded.processor.tokenizer.pad({"input_ids": texts}, padding=True, return_tensors="pt")
        inputs = {name: padded[name].to(model.device) for name in ("input_ids", "attention_mask")}
        width = inputs["input_ids"].shape[1]
        if self.seed is not None:
            torch.manual_seed(self.seed + rows[0].line)
        sequences = model.generate(
            **inputs,
            **self._grids(rows),
            max_new_tokens=min(self.max_new_tokens, room_for_answer(model, width)),
            do_sample=self.seed is not None,
        )
        return [
            self._read(row, len(text), tokens) for row, text, tokens in zip(rows, texts, sequences[:, width:].tolist())
        ]

    def _read(self, row: Question, prompt_tokens: int, tokens: list[int]) -> Answer:
        ends = stops(self.loaded.model)
        count = next((number for number, token in enumerate(tokens, 1) if token in ends), len(tokens))
        text = self.loaded.processor.decode(tokens[:count], skip_special_tokens=True).strip()
        return Answer(row, text, tokens[count - 1] in ends, prompt_tokens, count)

    def _grids(self, rows: Sequence[Question]) -> dict[str, "Tensor"]:
        """The remembered images of each row side by side, as the model takes grids; nothing where no row has one."""
        import torch

        seen = [[self.views[name] for name in row.images] for row in rows]
        most = max(sum(len(view.boxes) for view in views) for views in seen)
        if most == 0:
            return {}
        like = next(view for views in seen for view in views)
        grids = like.features.new_zeros(len(rows), most, like.features.shape[1])
        # A box of size 0 would have no logarithm: what is not there gets the box of the whole image.
        boxes = like.boxes.new_tensor([0, 0, 1, 1]).repeat(len(rows), most, 1)
        mask = torch.zeros(len(rows), most, dtype=torch.bool, device=grids.device)
        images = torch.zeros(len(rows), most, dtype=torch.int64, device=grids.device)
        for row, views in enumerate(seen):
            end = 0
            for number, view in enumerate(views):
                start, end = end, end + len(view.boxes)
                grids[row, start:end], boxes[row, start:end] = view.features, view.boxes
                mask[row, start:end], images[row, start:end] = True, number
        given = {"grids": grids, "grid_mask": mask, "grid_boxes": boxes}
        return given | ({"grid_images": images} if int(images.max()) > 0 else {})
