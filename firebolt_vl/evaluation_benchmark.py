"""`firebolt bench evaluation`: `evaluation.evaluate` and its bare loop, in turns over the same batches of one run."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .bench_commands import chosen, give_report, new_table, report_file, show_table
from .checkpoint import Loaded, choose_device, quiet
from .errors import Failure
from .evaluate.benchmarks import BENCHMARKS
from .evaluate.items import Item
from .evaluation import Asking, Examinee, evaluate, results
from .progress import progress_bar

if TYPE_CHECKING:
    from .bench.evaluation import Report, Turns

POPE = BENCHMARKS["pope"]
WARMING = 2
"""Batches that both loops answer before the clocks start."""


class Given(Examinee):
    """A model that is in memory, of whose batches `turns` is told."""

    def __init__(self, loaded: Loaded, max_new_tokens: int, turns: "Turns"):
        self._loaded, self.max_new_tokens, self.turns = loaded, max_new_tokens, turns
        self.by = {"checkpoint": "random", "max_new_tokens": max_new_tokens}

    def asking(self, report: Callable[[str], None]) -> "Told":
        return Told(self.loaded(report), self.max_new_tokens, self.turns)


class Told(Asking):
    """A model that is asked items, and tells of them."""

    def __init__(self, loaded: Loaded, max_new_tokens: int, turns: "Turns"):
        super().__init__(loaded, max_new_tokens)
        self.turns = turns

    def ask(self, items: Sequence[tuple[int, Item]]) -> list:
        from .bench.evaluation import Asked

        self.turns.asked([Asked(item.id, item.images[0].path, item.question) for _, item in items])
        return super().ask(items)


def evaluation_benchmark(
    rows: int,
    images: int | None,
    batch_size: int,
    new_tokens: int,
    device: str,
    dtype: str | None,
    threads: int | None,
    out: str | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    import torch

    from .bench import answer, evaluation

    device = choose_device(device)
    [dtype] = chosen("--dtype", [dtype or ("bfloat16" if device == "cuda" else "float32")], answer.DTYPES)
    file = report_file(out, "Evaluation beside its bare loop\n", "rows", overwrite)
    if threads is not None:
        torch.set_num_threads(threads)
    with quiet(), tempfile.TemporaryDirectory() as folder, progress_bar("answering") as progress:
        loaded = Loaded(*evaluation.build(dtype, device))
        found = measure(loaded, Path(folder), rows, images or rows, batch_size, new_tokens, progress)
    give_report(file, found.to_dict(), partial(evaluation.page, found), as_json, lambda: _show(found))
    if found.answers_that_differ:
        raise Failure(f"{found.answers_that_differ} of {found.rows} answers are not those of the bare loop")


def measure(
    loaded: Loaded,
    folder: Path,
    rows: int,
    images: int,
    batch_size: int,
    new_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Report":
    """Draw rows into `folder`, let evaluation and the bare loop answer them in turns, and say what they took."""
    from .bench import evaluation

    def run(count: int, name: str) -> tuple["Turns", int]:
        """The turns over so many rows, and how many answers differ."""
        place = folder / name
        place.mkdir()
        data = evaluation.write_rows(place, count, min(images, count))
        turns = evaluation.Turns(lambda batch: evaluation.answer(*loaded, batch, new_tokens))

        def answered(done: int, total: int) -> None:
            progress(done, total)
            turns.answered()

        turns.begin()
        done = evaluate(
            POPE, str(data), Given(loaded, new_tokens, turns), place, batch_size=batch_size, progress=answered
        )
        results(POPE, done.rows, done.bad)
        turns.end()
        return turns, sum(row["got"] != turns.answers[row["id"]] for row in done.rows)

    run(WARMING * batch_size, "warming")
    turns, differ = run(rows, "measured")
    return evaluation.report(
        turns.found,
        images=images,
        batch_size=batch_size,
        new_tokens=new_tokens,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=str(loaded.model.device.type),
        answers_that_differ=differ,
    )


def _show(found: "Report") -> None:
    from .bench.evaluation import COLUMNS, cells

    table = new_table("evaluation beside its bare loop", COLUMNS, ())
    table.add_row(*cells(found))
    show_table(table, 200)
