"""The runs on the handwriting task, each of which leaves a row of results."""

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ...evaluate.tiny import mark_exam
from ..tiny.fusion import FusionJob, answer_loss
from .pool import Pool, run_all
from .task import Settings, Task, keep_task, load_task
from .training import train, use_one_core
from .variants import VARIANTS, definition, learning, make_model

POOL = Pool("runs", definition)
WORK, TASK = "work", "task.safetensors"


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
    wanted = POOL.missing(out, variants, seeds, settings)
    if not wanted:
        return
    keep_task(out / WORK / TASK, checkpoint, settings, processes)
    run_all(wanted, partial(do_run, out, settings=settings, checkpoint=checkpoint), processes, report)


def do_run(out: Path, name: str, seed: int, settings: Settings, checkpoint: Path) -> dict:
    """Train and examine one variant and seed, and keep the row; a run that was stopped goes on."""
    use_one_core()
    task = load_task(out / WORK / TASK, checkpoint, settings)
    variant = VARIANTS[name]
    model = make_model(variant, task.processor.tokenizer, task.tower, seed)
    job = FusionJob(
        model, task.processor, task.views, task.questions, task.captions, settings.steps, variant.grounding_loss
    )
    about, work = POOL.about(name, seed, settings), out / WORK / f"{name}-seed-{seed}"
    measured = train(job, work, about)
    examined = examine(job.model.eval(), task)
    row = POOL.write_row(out, about, {"learning_parameters": learning(model), **measured, **examined})
    shutil.rmtree(work)
    return row


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
