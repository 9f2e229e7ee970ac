"""One run of the pool: trained in a process of one thread, resumed where it was stopped."""

import json
import time
from pathlib import Path

import torch
from transformers.utils import logging

from ...files.writing import write_text
from ..loop import HISTORY, Job, LoopOptions, read_history, run
from ..session import close, new_accelerator

SAVE_EVERY = 100
FIRST_STEPS = 100


def use_one_core() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def train(job: Job, work: Path, about: dict) -> dict:
    """Train `job` in the folder `work`, from its checkpoint if that is of `about`, what its row belongs to; returns
    what a row of results tells of a training."""
    kept = work / "about.json"
    resume = kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) == about
    write_text(kept, json.dumps(about))
    begun, begun_cpu = time.perf_counter(), time.process_time()
    accelerator = new_accelerator([], work, cpu=True)
    skipped = run(job, accelerator, LoopOptions(work, SAVE_EVERY, resume=resume, plot=False))
    close(accelerator)
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - begun_cpu,
        "resumed": resume,
        "skipped_steps": skipped,
        "first_steps_loss": first_steps_loss(work / HISTORY),
    }


def first_steps_loss(history: Path) -> float:
    """The mean loss of the answers in the first steps of a run: how well it starts. Steps that were skipped are left
    out."""
    lines = [line for line in read_history(history)[:FIRST_STEPS] if not line.get("skipped")]
    return sum(line["loss"] for line in lines) / len(lines)
