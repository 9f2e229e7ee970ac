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
from .evaluate.items import Benchmark, Item, Marked
from .evaluate.rows import Cell, Data, DataError, open_data
from .files.problems import BadRow, Problem, Problems, TooManyBadRows
from .row_files import RowFile

if TYPE_CHECKING:
    from PIL import Image

    from .checkpoint import Loaded

WINDOW = 16
"""Batches that are looked at together, so that those of like length are answered in one."""
COLUMNS = ("id", "question", "wanted", "got", "parsed", "score", "seconds")


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


def evaluate(
    benchmark: Benchmark,
    source: str,
    *,
    out: Path,
    checkpoint: str | None = None,
    limit: int | None = None,
    shard: Shard = Shard(),
    batch_size: int = 8,
    max_new_tokens: int = 16,
    device: str = "auto",
    max_bad_share: float = 0.01,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda line: None,
    **how,
) -> Run:
    """Answer the questions of a data file (`evaluate.rows.open_data`) that the file of predictions lacks.

    `out` is the folder of the predictions, NAME.predictions.jsonl, which is made. `limit` takes the first rows of the
    file. `progress(done, total)` is called after each batch; `report` with a line for each row that cannot be used:
    more than `max_bad_share` of the rows stop the run. `how` goes to `checkpoint.load`.

    Raises Misuse, Failure: what cannot be done, in one line.
    """
    from .ask import check_numbers, ignore_settings
    from .checkpoint import choose_device, load, locate, quiet
    from .identity import answered_by

    check_numbers(max_new_tokens, None)
    try:
        data = open_data(source, benchmark.split, benchmark.subset)
    except DataError as error:
        raise Misuse(f"--data: {error}") from None
    place, folder = choose_device(device), locate(checkpoint)
    make_folder(out)
    by = answered_by(folder, checkpoint, how.get("dtype", "auto"), how.get("quantize"), None, max_new_tokens)
    by["benchmark"] = benchmark.name
    path = out / f"{shard.named(benchmark.name)}.predictions.jsonl"
    inputs = [("the data", source)] if Path(source).is_file() else []
    columns = (*COLUMNS, "about", "by")
    with RowFile("--out", str(path), inputs, report, columns, "prediction") as file:
        for row in file.rows.values():
            file.check_by(row, by)
        reader = Reader(benchmark, data, file.rows, limit, shard, max_bad_share, report)
        run = Run(benchmark, path, before=len(file.rows))
        progress(run.before, reader.total)
        with quiet():
            answering = None
            for items in windows(reader.items(), WINDOW * batch_size):
                if answering is None:
                    loaded = load(folder, place, **how)
                    ignore_settings(loaded, None, report)
                    by["dtype"] = str(loaded.model.dtype).removeprefix("torch.")
                    for row in file.rows.values():
                        file.check_by(row, by)
                    answering = Asking(loaded, max_new_tokens)
                for batch in batches_of_like_length(items, batch_size):
                    predictions = []
                    for number, item, got, seconds in answering.ask(batch):
                        if isinstance(got, str):
                            predictions.append(prediction(benchmark, item, got, seconds, by))
                        else:
                            reader.refuse(number, got)
                    file.append([json.dumps(row, ensure_ascii=False) for row in predictions])
                    file.rows |= {json.dumps(row["id"]): row for row in predictions}
                    progress(len(file.rows), reader.total)
        reader.finish()
        run.rows, run.bad = list(file.rows.values()), len(reader.problems)
        run.images = answering.answering.encoded if answering is not None else 0
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

    def items(self) -> Iterator[tuple[int, Item]]:
        """The questions without a prediction, with the numbers of their rows."""
        seen: dict[str, int] = {}
        for number, (place, row) in enumerate(self.data, 1):
            if self.limit is not None and number > self.limit:
                return
            try:
                if isinstance(row, BadRow):
                    raise row
                item = self._item(number, row)
                key = json.dumps(item.id)
                if (first := seen.setdefault(key, place)) != place:
                    raise BadRow("id twice", f"{key} is that of row {first} too")
                if (done := self.there.get(key)) is not None and done["question"] != item.question:
                    raise Misuse(
                        f"--out has another question for id {key} (line {done.get('line')}) than row {place}; name "
                        "another folder"
                    )
                wanted = self.shard.has(number) and done is None
            except BadRow as problem:
                if self.shard.has(number):
                    self.refuse(place, problem)
                continue
            if wanted:
                yield place, item

    def _item(self, number: int, row: Mapping[str, Any]) -> Item:
        for column in self.benchmark.columns:
            if column not in row:
                raise BadRow(f"no column {column}", f"the columns are {', '.join(row) or 'none'}")
        item = self.benchmark.read(row)
        for cell in item.images:
            if not isinstance(cell, Cell):
                raise BadRow("image is no image", f"it is of type {type(cell).__name__}; expected an image or its path")
        return item if item.id is not None else item._replace(id=number)

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

    def finish(self) -> None:
        if not self.total:
            raise Failure(f"--data is {self.data.name}, which has no rows here; expected one or more")


def windows(items: Iterator[tuple[int, Item]], size: int) -> Iterator[list[tuple[int, Item]]]:
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
