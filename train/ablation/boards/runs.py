"""The runs on boards, each of which leaves a row of results."""

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..pool import Pool, run_all
from ..training import train, use_one_core
from .decoder import keep_decoder, load_decoder, recalled
from .exam import examine, time_ratio
from .job import BoardsJob
from .task import Settings, keep_tower, load_task
from .variants import VARIANTS, definition, learning, make_model

POOL = Pool("runs-boards", definition)
WORK = "work"
# Kept with the rows, which are of this tower and this decoder: trained anew by another machine they would be others.
TOWER, DECODER = f"{POOL.rows}/tower.safetensors", f"{POOL.rows}/decoder.safetensors"


def fill_pool(
    out: Path,
    variants: Sequence[str],
    seeds: int,
    settings: Settings,
    processes: int,
    report: Callable[[str, int, dict], None],
) -> None:
    """Do the missing runs, `processes` at a time; `report(variant, seed, row)` is told of each."""
    wanted = POOL.missing(out, variants, seeds, settings)
    if not wanted:
        return
    use_one_core()
    keep_tower(out / TOWER, settings.tower_steps)
    if any(VARIANTS[name].trained for name, _ in wanted):
        keep_decoder(out / DECODER)
    run_all(wanted, partial(do_run, out, settings=settings), processes, report)


def do_run(out: Path, name: str, seed: int, settings: Settings) -> dict:
    """Train and examine one variant and seed, and keep the row; a run that was stopped goes on."""
    use_one_core()
    task = load_task(out / TOWER, settings)
    variant = VARIANTS[name]
    model = make_model(variant, seed)
    texts = {}
    if variant.trained:
        load_decoder(model, out / DECODER)
        texts["recall_before"] = recalled(model, variant.grids, task)
    about, work = POOL.about(name, seed, settings), out / WORK / f"boards-{name}-seed-{seed}"
    job = BoardsJob(model, variant.grids, task, seed)
    measured = train(job, work, about)
    if variant.trained:
        texts["recall_after"] = recalled(job.model, variant.grids, task)
    results = {
        "learning_parameters": learning(model),
        **measured,
        **examine(job.model.eval(), variant.grids, task),
        "answer": time_ratio(job.model, variant.grids, task),
        **texts,
    }
    row = POOL.write_row(out, about, results)
    shutil.rmtree(work)
    return row
