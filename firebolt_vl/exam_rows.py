"""The questions of a data file that are still to be asked, those without a prediction; bad rows are counted."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import Failure, Misuse
from .evaluate.items import Benchmark, Item, no_column, numbered
from .evaluate.rows import Cell, Data
from .files.problems import BadRow, Problem, Problems, TooManyBadRows

Items = Iterator[tuple[int, Item]]
"""Questions with the numbers of their rows."""


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
        self.met: set[str] = set()
        """The ids of the questions, as JSON."""

    def items(self, arrange: Callable[[Items], Items] | None = None) -> Items:
        """The questions without a prediction, with the numbers of their rows.

        Raises Misuse where a prediction is that of another question with the same id, or, unless they are arranged
        anew, of another image.
        """
        for place, item in self._good() if arrange is None else arrange(self._good()):
            if not self.shard.has(place):
                continue
            key = json.dumps(item.id)
            self.met.add(key)
            done = self.there.get(key)
            if done is None:
                yield place, item
            elif what := _other(done, item, images=arrange is None):
                raise Misuse(
                    f"--out has another {what} for id {key} (line {done.get('line')}) than row {place}; name another "
                    "folder"
                )

    def _good(self) -> Items:
        """The questions of all rows that are ones; none any more from where too many are not. Raises Failure for those,
        after all rows have been looked at."""
        seen: dict[str, int] = {}
        for place, row in self.data:
            if self.limit is not None and place > self.limit:
                break
            try:
                if isinstance(row, BadRow):
                    raise row
                item = self._item(place, row)
                key = json.dumps(item.id)
                if (first := seen.setdefault(key, place)) != place:
                    raise BadRow("id twice", f"{key} is that of row {first} too")
            except BadRow as problem:
                if self.shard.has(place):
                    self._tell(place, problem)
                continue
            if not self._too_many():
                yield place, item
        if self._too_many():
            self.check()

    def _item(self, number: int, row: Mapping[str, Any]) -> Item:
        for column in self.benchmark.columns:
            if column not in row:
                raise no_column(row, column)
        try:
            item = self.benchmark.read(row)
        except KeyError as missing:
            raise no_column(row, missing.args[0]) from None
        for cell in item.images:
            if not isinstance(cell, Cell):
                raise BadRow("image is no image", f"it is of type {type(cell).__name__}; expected an image or its path")
        return numbered(item, number)

    def refuse(self, place: int, problem: BadRow) -> None:
        """Count and tell a row that cannot be used. Raises Failure where they are too many."""
        self._tell(place, problem)
        if self._too_many():
            self.check()

    def check(self) -> None:
        """Check that at most the allowed share of the rows is bad, and one is good. Raises Failure."""
        try:
            self.problems.check(self.max_bad_share, "--max-bad-share ")
        except TooManyBadRows as error:
            raise Failure(f"{argument_of(self.benchmark)}{error}") from None

    def _tell(self, place: int, problem: BadRow) -> None:
        found = Problem(self.data.name, str(place), problem.kind, problem.message)
        if self.problems.add(found):
            self.report(str(found))

    def _too_many(self) -> bool:
        return len(self.problems) > self.max_bad_share * self.total


def _other(done: Mapping[str, Any], item: Item, images: bool) -> str | None:
    """Name what a prediction is about that is not what a question is about; None where it is the question's."""
    if done["question"] != item.question:
        return "question"
    about = {name: done["about"].get(name) for name in item.about}
    if json.dumps([done["wanted"], about]) != json.dumps([item.wanted, item.about]):
        return "answer"
    shown = names(item)
    return "image" if images and done.get("images", shown) != shown else None


def names(item: Item) -> list[str]:
    """Names of a question's images and video in its prediction: paths in the data, or hashes of bytes."""
    images = [cell.name if cell.data is None else cell.key for cell in item.images]
    return images if item.video is None else [*images, item.video]


def argument_of(benchmark: Benchmark) -> str:
    """The beginning of a complaint about data: the option that names them, which own questions do without."""
    return "--data: " if benchmark.hub else ""


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
