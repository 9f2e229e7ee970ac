"""A benchmark's questions out of a data file, answered into a file of predictions and scored, whatever happens between.

A prediction is on the disk before the next questions are asked; a run that was stopped goes on with the others. Scores
are computed from predictions alone, so that they can be computed again.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answer_files import Answer, Question
from .errors import Failure, Misuse
from .evaluate.items import Benchmark, Item, Marked, numbered
from .evaluate.rows import Cell, Data, DataError, open_data
from .files.problems import BadRow, Problem, Problems, TooManyBadRows
from .row_files import RowFile

if TYPE_CHECKING:
    from PIL import Image

    from .checkpoint import Loaded

WINDOW = 16
"""Batches that are looked at together, so that those of like length are answered in one."""
Items = Iterator[tuple[int, Item]]
"""Questions with the numbers of their rows."""
COLUMNS = ("id", "question", "wanted", "got", "parsed", "score", "seconds", "about", "by")


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`: the rows whose number is `number` modulo `count`."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "i/n". Raises Misuse."""
        try:
            number, count = map(int, text.split("/"))
        except ValueError:
            number = count = 0
        if not 1 <= number <= count:
            raise Misuse(f"--shard is {text}; expected i/n with i from 1 to n, such as 1/4")
        return cls(number, count)

    def has(self, row: int) -> bool:
        return (row - self.number) % self.count == 0

    def named(self, name: str) -> str:
        return name if self.count == 1 else f"{name}.{self.number}-of-{self.count}"


WHOLE = Shard()


@dataclass
class Run:
    """Outcome of a run: its predictions, and counts."""

    benchmark: Benchmark
    predictions: Path
    rows: list[dict] = field(default_factory=list)
    """The predictions, in the order of their file."""
    bad: int = 0
    before: int = 0
    """How many were there already."""
    images: int = 0
    """How many were encoded in this run."""


class Examinee:
    """A model to be examined, loaded when it is first needed."""

    def __init__(self, checkpoint: str | None, device: str = "auto", max_new_tokens: int = 16, **how):
        """`how` goes to `checkpoint.load`. Raises Misuse, Failure."""
        from .ask import check_numbers
        from .checkpoint import choose_device, locate
        from .identity import answered_by

        check_numbers(max_new_tokens, None)
        self.place, self.folder = choose_device(device), locate(checkpoint)
        self.max_new_tokens, self.how = max_new_tokens, how
        self.by = answered_by(
            self.folder, checkpoint, how.get("dtype", "auto"), how.get("quantize"), None, max_new_tokens
        )
        self._loaded: Loaded | None = None

    def loaded(self, report: Callable[[str], None]) -> "Loaded":
        """The model and its processor; from now on `by` has the dtype."""
        from .ask import ignore_settings

        if self._loaded is None:
            self._loaded = self._load()
            ignore_settings(self._loaded, None, report)
            self.by["dtype"] = str(self._loaded.model.dtype).removeprefix("torch.")
        return self._loaded

    def _load(self) -> "Loaded":
        from .checkpoint import load

        return load(self.folder, self.place, **self.how)

    def asking(self, report: Callable[[str], None]) -> "Asking":
        """The model as it is asked."""
        return Asking(self.loaded(report), self.max_new_tokens)


def evaluate(
    benchmark: Benchmark,
    source: str,
    examinee: Examinee,
    out: Path,
    *,
    name: str | None = None,
    limit: int | None = None,
    shard: Shard = WHOLE,
    batch_size: int = 8,
    max_bad_share: float = 0.01,
    arrange: Callable[[Items], Items] = iter,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Run:
    """Answer the questions of a data file (`evaluate.rows.open_data`) that the file of predictions lacks.

    `out` is the folder of the predictions, which is made; `name` names their file, NAME.predictions.jsonl, in the
    place of the benchmark. `limit` takes the first rows of the file. `arrange` may change the questions.
    `progress(done, total)` is called after each batch; `report` with a line for each row that cannot be used: more than
    `max_bad_share` of the rows stop the run.

    Raises Misuse, Failure: what cannot be done, in one line.
    """
    from .checkpoint import quiet

    try:
        data = open_data(source, benchmark.split, benchmark.subset)
    except DataError as error:
        raise Misuse(f"--data: {error}") from None
    make_folder(out)
    path = out / f"{shard.named(name or benchmark.name)}.predictions.jsonl"
    inputs = [("the data", source)] if Path(source).is_file() else []
    with RowFile("--out", str(path), inputs, report, COLUMNS, "prediction") as file:
        by = {**examinee.by, "benchmark": benchmark.name}
        file.check_all_by(by)
        reader = Reader(benchmark, data, file.rows, limit, shard, max_bad_share, report)
        run = Run(benchmark, path, before=len(file.rows))
        progress(run.before, reader.total)
        with quiet():
            asking = None
            for items in windows(reader.items(arrange), WINDOW * batch_size):
                if asking is None:
                    asking = examinee.asking(report)
                    by = {**examinee.by, "benchmark": benchmark.name}
                    file.check_all_by(by)
                for batch in batches_of_like_length(items, batch_size):
                    predictions = []
                    for place, item, got, seconds in asking.ask(batch):
                        if isinstance(got, str):
                            predictions.append(prediction(benchmark, item, got, seconds, by))
                        else:
                            reader.refuse(place, got)
                    file.append([json.dumps(row, ensure_ascii=False) for row in predictions])
                    file.rows |= {json.dumps(row["id"]): row for row in predictions}
                    progress(len(file.rows), reader.total)
        if not reader.total:
            raise Failure(f"--data is {source}, which has no rows here; expected one or more")
        run.rows, run.bad = list(file.rows.values()), len(reader.problems)
        run.images = asking.encoded if asking is not None else 0
    return run


def make_folder(out: Path) -> None:
    """Make the folder of the results. Raises Misuse."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misuse(f"--out is {out}, which cannot be a folder ({error.strerror}); name another place") from None


class Reader:
    """The questions of a file that are still to be answered; bad rows are counted and told."""

    def __init__(
        self,
        benchmark: Benchmark,
        data: Data,
        there: Mapping[str, dict],
        limit: int | None,
        shard: Shard,
        max_bad_share: float,
        report: Callable[[str], None],
    ):
        self.benchmark, self.data, self.there, self.limit, self.shard = benchmark, data, there, limit, shard
        self.max_bad_share, self.report = max_bad_share, report
        rows = data.total if limit is None else min(limit, data.total)
        self.total = sum(shard.has(row) for row in range(1, rows + 1))
        self.problems = Problems(self.total)

    def items(self, arrange: Callable[[Items], Items]) -> Items:
        """The questions without a prediction, with the numbers of their rows."""
        for place, item in arrange(self._good()):
            done = self.there.get(json.dumps(item.id))
            if done is not None and done["question"] != item.question:
                raise Misuse(
                    f"--out has another question for id {json.dumps(item.id)} (line {done.get('line')}) than row "
                    f"{place}; name another folder"
                )
            if done is None and self.shard.has(place):
                yield place, item

    def _good(self) -> Items:
        """The questions of all rows that are ones."""
        seen: dict[str, int] = {}
        for place, row in self.data:
            if self.limit is not None and place > self.limit:
                return
            try:
                if isinstance(row, BadRow):
                    raise row
                item = self._item(place, row)
                key = json.dumps(item.id)
                if (first := seen.setdefault(key, place)) != place:
                    raise BadRow("id twice", f"{key} is that of row {first} too")
            except BadRow as problem:
                if self.shard.has(place):
                    self.refuse(place, problem)
                continue
            yield place, item

    def _item(self, number: int, row: Mapping[str, Any]) -> Item:
        for column in self.benchmark.columns:
            if column not in row:
                raise BadRow(f"no column {column}", f"the columns are {', '.join(row) or 'none'}")
        item = self.benchmark.read(row)
        for cell in item.images:
            if not isinstance(cell, Cell):
                raise BadRow("image is no image", f"it is of type {type(cell).__name__}; expected an image or its path")
        return numbered(item, number)

    def refuse(self, place: int, problem: BadRow) -> None:
        """Count and tell a row that cannot be used. Raises Failure where they are too many."""
        found = Problem(self.data.name, str(place), problem.kind, problem.message)
        if self.problems.add(found):
            self.report(str(found))
        if len(self.problems) > max(self.max_bad_share * self.total, 0):
            try:
                self.problems.check(self.max_bad_share)
            except TooManyBadRows as error:
                raise Failure(f"--data: {error}") from None


def windows(items: Items, size: int) -> Iterator[list[tuple[int, Item]]]:
    window: list[tuple[int, Item]] = []
    for item in items:
        window.append(item)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def batches_of_like_length(items: Sequence[tuple[int, Item]], size: int) -> Iterator[Sequence[tuple[int, Item]]]:
    ordered = sorted(items, key=lambda pair: (len(pair[1].images), len(pair[1].question)))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


class Asking:
    """A model that is asked items."""

    def __init__(self, loaded: "Loaded", max_new_tokens: int):
        from .batch import Answering

        self.cells: dict[str, Cell] = {}
        self.answering = Answering(loaded, self._open, max_new_tokens)

    @property
    def encoded(self) -> int:
        """Number of images that were encoded."""
        return self.answering.encoded

    def _open(self, name: str) -> "Image.Image":
        return self.cells[name].open()

    def ask(self, items: Sequence[tuple[int, Item]]) -> list[tuple[int, Item, str | BadRow, float]]:
        """The answer to each item, or why there is none, and the seconds that it took: its share of the batch's."""
        start = time.perf_counter()
        rows = []
        for number, item in items:
            names = [cell.key for cell in item.images]
            self.cells.update(zip(names, item.images))
            rows.append(Question(number, item.id, item.question, names))
        found = self.answering.answer(rows)
        self.cells.clear()
        seconds = (time.perf_counter() - start) / len(items)
        got = [one.answer if isinstance(one, Answer) else BadRow("no answer", one.error) for one in found]
        return [(number, item, answer, seconds) for (number, item), answer in zip(items, got)]


def prediction(benchmark: Benchmark, item: Item, got: str, seconds: float, by: dict) -> dict:
    """A line of the file of predictions."""
    mark = benchmark.mark(got, item.wanted, item.about)
    return {
        "id": item.id,
        "question": item.question,
        "wanted": item.wanted,
        "got": got,
        "parsed": mark.parsed,
        "score": mark.score,
        "seconds": round(seconds, 4),
        "about": item.about,
        "by": dict(by),
    }


def marked(benchmark: Benchmark, rows: Sequence[dict]) -> list[Marked]:
    """Predictions with the marks that their answers get now."""
    return [
        Marked(
            row["id"], row["wanted"], row["about"], row["got"], benchmark.mark(row["got"], row["wanted"], row["about"])
        )
        for row in rows
    ]


def results(benchmark: Benchmark, rows: Sequence[dict], bad: int = 0) -> dict:
    """The scores of predictions, and what should stand beside them.

    Scores that these rows do not allow, such as those of half of MME's pairs, are absent; `not_scored` says why.
    """
    answers = marked(benchmark, rows)
    found = {
        "benchmark": benchmark.name,
        "rows": len(rows),
        "bad_rows": bad,
        "unparsed": sum(one.mark.parsed is None for one in answers),
        "seconds_a_question": sum(row["seconds"] for row in rows) / max(1, len(rows)),
    }
    try:
        found |= benchmark.scores(answers) if answers else {"not_scored": "no row was answered"}
    except ValueError as error:
        found["not_scored"] = str(error)
    return found
