"""A benchmark's questions out of a data file, answered into a file of predictions and scored, whatever happens between.

A prediction is on the disk before the next questions are asked; a run that was stopped goes on with the others. Scores
are computed from predictions alone, so that they can be computed again.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .answer_files import Answer, Question
from .errors import Failure, Misuse
from .evaluate.items import Benchmark, Item, Marked
from .evaluate.rows import Cell, DataError, open_data
from .exam_rows import WHOLE, Items, Reader, Shard, argument_of, batches_of_like_length, names, windows
from .files.problems import BadRow
from .ranks import this_rank
from .row_files import RowFile

if TYPE_CHECKING:
    from PIL import Image

    from .checkpoint import Loaded

WINDOW = 16
"""Batches that are looked at together, so that those of like length are answered in one."""
COLUMNS = ("id", "question", "wanted", "got", "parsed", "score", "seconds", "about", "by")


@dataclass(frozen=True)
class Run:
    """Outcome of a run: its predictions, and counts."""

    benchmark: Benchmark
    predictions: Path
    rows: list[dict]
    """The predictions of the rows that were asked for, in the order of their file."""
    bad: int
    before: int
    """How many were there already."""
    images: int
    """How many were encoded in this run."""


class Examinee:
    """A model to be examined, loaded when it is first needed."""

    def __init__(self, checkpoint: str | None, device: str = "auto", max_new_tokens: int = 16, **how):
        """`how` goes to `checkpoint.load`. Raises Misuse, Failure."""
        from .ask import check_numbers
        from .checkpoint import choose_device, locate
        from .identity import answered_by

        check_numbers(max_new_tokens, None)
        self.place, self.folder = choose_device(device, this_rank().local), locate(checkpoint)
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
    arrange: Callable[[Items], Items] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Run:
    """Answer the questions of a data file (`evaluate.rows.open_data`) that the file of predictions lacks.

    `out` is the folder of the predictions, which is made; `name` names their file, NAME.predictions.jsonl, in the
    place of the benchmark. `limit` takes the first rows of the file. `arrange` may change the questions.
    `progress(done, total)` is called after each batch; `report` with a line for each row that cannot be used: more than
    `max_bad_share` of the rows stop the run. Of the predictions that are there, those of other rows are left out.

    Raises Misuse, Failure: what cannot be done, in one line.
    """
    from .checkpoint import quiet

    try:
        data = open_data(source, benchmark.split, benchmark.subset)
    except DataError as error:
        raise Misuse(f"{argument_of(benchmark)}{error}") from None
    make_folder(out)
    path = out / f"{shard.named(name or benchmark.name)}.predictions.jsonl"
    inputs = [("the data", source)] if Path(source).is_file() else []
    with RowFile("--out", str(path), inputs, report, COLUMNS, "prediction", "name another folder") as file:
        by = {**examinee.by, "benchmark": benchmark.name}
        file.check_all_by(by)
        reader = Reader(benchmark, data, dict(file.rows), limit, shard, max_bad_share, report)
        done = min(len(file.rows), reader.total)
        progress(done, reader.total)
        with quiet(), readable(benchmark):
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
                    progress(done := min(done + len(batch), reader.total), reader.total)
        if not reader.total:
            part = "" if shard.count == 1 else f" in part {shard.number} of {shard.count}"
            raise Failure(f"{argument_of(benchmark)}{source} has no rows{part}; expected one or more")
        reader.check()
        rows = [row for key, row in file.rows.items() if key in reader.met]
        if others := len(file.rows) - len(rows):
            report(f"{path} also has {others} predictions of other rows than these; they are kept, and not scored here")
        before = len(reader.met & reader.there.keys())
        return Run(benchmark, path, rows, len(reader.problems), before, asking.encoded if asking is not None else 0)


@contextmanager
def readable(benchmark: Benchmark) -> Iterator[None]:
    """Turn data that breaks off in the middle into a Failure."""
    try:
        yield
    except DataError as error:
        raise Failure(f"{argument_of(benchmark)}{error}") from None


def make_folder(out: Path) -> None:
    """Make the folder of the results. Raises Misuse."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misuse(f"--out is {out}, which cannot be a folder ({error.strerror}); name another place") from None


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
        got = [one.answer if isinstance(one, Answer) else BadRow("not answered", one.error) for one in found]
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
        "images": names(item),
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
