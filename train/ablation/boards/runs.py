"""The runs on boards, each of which leaves a row of results."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ...results import write_results
from ..pool import file_of_row, finished, run_all, unfinished
from ..training import train, use_one_core
from .decoder import keep_decoder, load_decoder, recalled
from .exam import examine, time_ratio
from .job import BoardsJob
from .task import Settings, keep_tower, load_task
from .variants import VARIANTS, learning, make_model

ROWS, WORK, TOWER, DECODER = "runs-boards", "work", "boards-tower.safetensors", "boards-decoder.safetensors"


def row_file(out: Path, variant: str, seed: int) -> Path:
    return file_of_row(out / ROWS, variant, seed)


def read_row(out: Path, variant: str, seed: int, settings: Settings) -> dict | None:
    """The results of a finished run. None where there is none, or only one of other settings."""
    return finished(out / ROWS, variant, seed, settings.to_dict())


def missing(out: Path, variants: Sequence[str], seeds: int, settings: Settings) -> list[tuple[str, int]]:
    """The runs that are still to be done."""
    return unfinished(out / ROWS, variants, seeds, settings.to_dict())


def fill_pool(
    out: Path,
    variants: Sequence[str],
    seeds: int,
    settings: Settings,
    processes: int,
    report: Callable[[str, int, dict], None],
) -> None:
    """Do the missing runs, `processes` at a time; `report(variant, seed, row)` is told of each."""
    wanted = missing(out, variants, seeds, settings)
    if not wanted:
        return
    use_one_core()
    keep_tower(out / WORK / TOWER, settings.tower_steps)
    if any(VARIANTS[name].trained for name, _ in wanted):
        keep_decoder(out / WORK / DECODER)
    run_all(wanted, partial(do_run, out, settings=settings), processes, report)


def do_run(out: Path, name: str, seed: int, settings: Settings) -> dict:
    """Train and examine one variant and seed, and keep the row; a run that was stopped goes on."""
    use_one_core()
    task = load_task(out / WORK / TOWER, settings)
    variant = VARIANTS[name]
    model = make_model(variant, seed)
    texts = {}
    if variant.trained:
        load_decoder(model, out / WORK / DECODER)
        texts["recall_before"] = recalled(model, variant.grids, task)
    work = out / WORK / f"boards-{name}-seed-{seed}"
    job = BoardsJob(model, variant.grids, task, seed)
    measured = train(job, work, settings.to_dict())
    if variant.trained:
        texts["recall_after"] = recalled(job.model, variant.grids, task)
    row = {
        "variant": name,
        "seed": seed,
        "settings": settings.to_dict(),
        "learning_parameters": learning(model),
        **measured,
        **examine(job.model.eval(), variant.grids, task),
        "answer": time_ratio(job.model, variant.grids, task),
        **texts,
    }
    write_results(row, row_file(out, name, seed))
    shutil.rmtree(work)
    return row
