"""Several seeds of the second stage at once, a process for each; the median of them is the result."""

import multiprocessing
import os
import shutil
import time
from pathlib import Path
from queue import Empty

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers.utils import logging

from ...evaluate.tiny import print_report
from ...files.writing import write_whole
from ..checkpoints import kept_in
from ..config import TinyConfig
from ..errors import Stopped, TrainingError
from ..interrupts import interrupts_held
from ..loop import HISTORY, PLOT
from ..results import RESULTS, write_results
from ..session import use_some_cores
from .seed import Sizes, loop_of, train_seed

SAID_EVERY = 100


def train_seeds(config: TinyConfig, folder: Path, work: Path, resume: bool) -> None:
    """Train `config.seeds` seeds in OUT/seed-N, from the stage in `work`; the model of the median goes to `folder`.

    Its results.json holds the results of all of them.
    """
    begun = time.monotonic()
    places = {seed: folder / f"seed-{seed}" for seed in range(config.seed, config.seed + config.seeds)}
    trained = _train_at_once(config, places, work, resume)
    sizes = Sizes.of(config)
    results = {
        "minutes": (time.monotonic() - begun) / 60,
        "cpu_minutes": sum(os.times()[:4]) / 60,
        "cores": os.cpu_count(),
        "steps": {"tower": sizes.tower_steps, "fusion": sizes.fusion_steps},
        "seeds": trained,
        "compared": [],
    }
    median = sorted(trained, key=overall)[(len(trained) - 1) // 2]
    take_model(places[median["training_seed"]], folder)
    write_results({"shipped_seed": median["training_seed"], **results}, folder / RESULTS)
    console = Console(stderr=True)
    print_report(median, console)
    console.print(
        f"{results['minutes']:.0f} minutes, {results['cpu_minutes']:.0f} of a core's; "
        f"seed {median['training_seed']} is the median"
    )


def overall(results: dict) -> float:
    """The mean of the accuracies inside the tiles and on the harder layouts."""
    return (results["accuracy"]["inside"]["all"] + results["accuracy"]["harder"]["all"]) / 2


def take_model(source: Path, folder: Path) -> None:
    """Put a copy of the model in `source` into `folder`, each file whole, the weights last."""
    files = [file for file in source.iterdir() if file.is_file() and file.name not in (HISTORY, PLOT)]
    for file in sorted(files, key=lambda file: file.suffix == ".safetensors"):
        write_whole(folder / file.name, lambda temporary, file=file: shutil.copyfile(file, temporary))


def _train_at_once(config: TinyConfig, places: dict[int, Path], work: Path, resume: bool) -> list[dict]:
    """The results of all seeds. Raises Stopped where the user stops them, and what stops one of them."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = {
        seed: context.Process(
            target=_work, args=(queue, config, seed, work, loop_of(config, place, resume)), daemon=True
        )
        for seed, place in places.items()
    }
    with _progress() as progress:
        bars = {seed: progress.add_task(f"seed {seed}", total=config.max_steps, note="") for seed in workers}
        with interrupts_held():
            for worker in workers.values():
                worker.start()
        results = {}
        try:
            while len(results) < len(workers):
                seed, found = _next(queue, workers, results)
                if isinstance(found, dict):
                    results[seed] = found
                else:
                    _show(progress, bars[seed], seed, *found)
        except KeyboardInterrupt:
            kept = ", ".join(f"seed {seed}: {kept_in(place / 'checkpoints')}" for seed, place in places.items())
            raise Stopped(f"stopped at once; {kept}") from None
        finally:
            for worker in workers.values():
                worker.terminate()
            for worker in workers.values():
                worker.join()
    return [results[seed] for seed in places]


def _work(queue, config: TinyConfig, seed: int, work: Path, loop) -> None:
    """Train one seed; Ctrl-C never comes here, the first process ends this one."""
    use_some_cores()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def report(told) -> None:
        queue.put((seed, (told.step, told.steps, told.measured["loss"])))

    try:
        queue.put((seed, train_seed(config, seed, work, loop, report)))
    except (TrainingError, ValueError, OSError) as error:
        queue.put((seed, error))


def _next(queue, workers: dict, results: dict):
    """Wait for the next report: (seed, results, or step, steps and loss). Raises what a process failed with."""
    while True:
        try:
            seed, found = queue.get(timeout=5)
        except Empty:
            if ended := [str(seed) for seed, worker in workers.items() if seed not in results and worker.exitcode]:
                raise TrainingError(f"seed {', '.join(ended)}: the training process ended early") from None
            continue
        if isinstance(found, Exception):
            raise found
        return seed, found


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    note = TextColumn("{task.fields[note]}")
    return Progress(*columns, TimeRemainingColumn(), note, console=Console(stderr=True))


def _show(progress: Progress, bar, seed: int, step: int, steps: int, loss: float) -> None:
    progress.update(bar, completed=step, note=f"loss {loss:.3f}")
    # A log has no bars.
    if step % SAID_EVERY == 0 and not progress.console.is_terminal:
        progress.console.print(f"seed {seed}: step {step} of {steps}, loss {loss:.3f}")
