"""Surroundings of a training: processes, trackers, cores."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from ..kernels.linear import SLOW_HALVES
from .errors import ConfigError
from .keys import check_choice


def is_first_process() -> bool:
    """Tell, from what a launcher says, whether this is the first process; no accelerator is needed."""
    return os.environ.get("RANK", "0") == "0"


def new_accelerator(trackers: list[str], folder: Path, cpu: bool = False) -> Accelerator:
    """One that leaves numbers as they are: autocast and accumulation are the job's. Raises ConfigError."""
    check_trackers(trackers)
    # It says of each checkpoint that tied weights are written once.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # Where it is not told, accelerate lets several processes without a GPU know nothing of one another.
    cpu = cpu or not torch.accelerator.is_available()
    return Accelerator(mixed_precision="no", cpu=cpu, log_with=trackers or None, project_dir=str(folder / "logs"))


def slow_precision(precision: str) -> str | None:
    """Return a line where a run in this precision takes longer than in float32: on a CPU without products in it."""
    if precision != "bf16" or torch.bfloat16 not in SLOW_HALVES or torch.accelerator.is_available():
        return None
    return (
        "precision is bf16, but this CPU has no products in bfloat16, so that a step takes several times as long as "
        "with precision=float32"
    )


def check_trackers(trackers: list[str]) -> None:
    """Check that trackers are ones that accelerate knows and that are installed. Raises ConfigError."""
    for tracker in trackers:
        check_choice("trackers", tracker, [one.value for one in LoggerType if one != LoggerType.ALL])
    if "tensorboard" in trackers and find_spec("tensorboard") is None:
        raise ConfigError(
            "trackers is tensorboard, which is not installed; pip install 'firebolt-vl[train]', or trackers=[]"
        )
    there = [one.value for one in get_available_trackers()]
    for tracker in trackers:
        if tracker not in there:
            raise ConfigError(f"trackers is {tracker}, which is not installed; install it, or leave it out")


def close(accelerator: Accelerator) -> None:
    """Let go of what a run held; processes stay joined for another one (`end_training` would part them)."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.free_memory()


def leave_others() -> None:
    """Part from the other processes, where there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def use_some_cores() -> None:
    """A thread for every four cores.

    Of matrices so small a second thread gets little, three seeds train at once, and threads that wait for one another
    on a machine with other work wait for that too: two on two busy cores made a step of the tower twenty times slower.
    """
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))
