"""The pool of runs: each finished one is a row on disk, and what is there is not run again."""

import json
import math
import multiprocessing
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path

import torch
from transformers.utils import logging

from ...evaluate.tiny import mark_exam
from ...files.writing import write_text
from ..errors import Stopped
from ..interrupts import interrupts_heard, interrupts_held
from ..loop import HISTORY, LoopOptions, read_history, run
from ..results import write_results
from ..session import close, new_accelerator
from ..tiny.fusion import FusionJob, answer_loss
from .task import Settings, Task, keep_task, load_task
from .variants import VARIANTS, learning, make_model

ROWS, WORK, TASK = "runs", "work", "task.safetensors"
SAVE_EVERY = 100
FIRST_STEPS = 100


def row_file(out: Path, variant: str, seed: int) -> Path:
    return out / ROWS / f"{variant}-seed-{seed}.json"


def read_row(out: Path, variant: str, seed: int, settings: Settings) -> dict | None:
    """The results of a finished run. None where there is none, or only one of other settings."""
    try:
        row = json.loads(row_file(out, variant, seed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if row.get("settings") == settings.to_dict() else None


def missing(out: Path, variants: Sequence[str], seeds: int, settings: Settings) -> list[tuple[str, int]]:
    """The runs that are still to be done: seed by seed, so that what is there early is there for every variant."""
    return [(name, seed) for seed in range(seeds) for name in variants if read_row(out, name, seed, settings) is None]


def fill_pool(
    out: Path,
    variants: Sequence[str],
    seeds: int,
    settings: Settings,
    checkpoint: Path,
    processes: int,
    report: Callable[[str, int, dict], None],
) -> None:
    """Do the missing runs, `processes` at a time, with the tower of `checkpoint`; `report(variant, seed, row)` is told
    of each."""
    wanted = missing(out, variants, seeds, settings)
    if not wanted:
        return
    keep_task(out / WORK / TASK, checkpoint, settings, processes)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as workers:
        # No more than run at once: what an executor has taken in advance would still be run after Ctrl-C.
        waiting, running = iter(wanted), {}
        while True:
            with interrupts_held():
                for name, seed in islice(waiting, processes - len(running)):
                    running[workers.submit(_do_run, out, name, seed, settings, checkpoint)] = (name, seed)
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                report(*running.pop(done), done.result())


_stopped = False


def _do_run(*given) -> dict:
    """`do_run` in a process of the pool, where Ctrl-C ends the step at hand and keeps a checkpoint.

    A process that was stopped begins no other run: the one of a process that is slow to start lies in the same queue.
    """
    global _stopped
    if _stopped:
        raise Stopped("stopped before it began")
    try:
        with interrupts_heard():
            return do_run(*given)
    except KeyboardInterrupt:
        _stopped = True
        raise


def do_run(out: Path, name: str, seed: int, settings: Settings, checkpoint: Path) -> dict:
    """Train and examine one variant and seed, and keep the row; a run that was stopped goes on."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = load_task(out / WORK / TASK, checkpoint, settings)
    variant = VARIANTS[name]
    model = make_model(variant, task.processor.tokenizer, task.tower, seed)
    job = FusionJob(
        model, task.processor, task.views, task.questions, task.captions, settings.steps, variant.grounding_loss
    )
    work = out / WORK / f"{name}-seed-{seed}"
    kept = work / "settings.json"
    resume = kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) == settings.to_dict()
    write_text(kept, json.dumps(settings.to_dict()))
    begun, begun_cpu = time.perf_counter(), time.process_time()
    accelerator = new_accelerator([], work, cpu=True)
    skipped = run(job, accelerator, LoopOptions(work, SAVE_EVERY, resume=resume, plot=False))
    close(accelerator)
    row = {
        "variant": name,
        "seed": seed,
        "settings": settings.to_dict(),
        "learning_parameters": learning(model),
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - begun_cpu,
        "resumed": resume,
        "skipped_steps": skipped,
        "first_steps_loss": first_steps_loss(work / HISTORY),
        **examine(job.model.eval(), task),
    }
    write_results(row, row_file(out, name, seed))
    shutil.rmtree(work)
    return row


def first_steps_loss(history: Path) -> float:
    """The mean loss of the answers in the first steps of a run: how well it starts. Steps that were skipped are left
    out."""
    lines = [line for line in read_history(history)[:FIRST_STEPS] if not line.get("skipped")]
    return sum(line["loss"] for line in lines) / len(lines)


@torch.no_grad()
def examine(model, task: Task) -> dict:
    """Perplexity of the right answers to the exam's questions in known wordings, and what `mark_exam` measures."""
    losses, tokens = 0.0, 0
    exam = task.exam
    for part in torch.arange(len(task.exam_rows.ids)).split(64):
        rows = task.exam_rows[part]
        count = int(rows.answer.sum())
        loss = answer_loss(model, rows, exam.features[rows.scene], exam.mask[rows.scene], exam.boxes[0])
        losses, tokens = losses + float(loss) * count, tokens + count
    return {"perplexity": math.exp(losses / tokens), **mark_exam(model, task.processor, exam)}
