"""From a configuration to a trained model."""

import json
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from ..evaluate.files import write_text
from .config import Config, ConfigError, FoveatedConfig, RowsConfig, TinyConfig, to_json
from .data import Problem
from .loop import LoopOptions, holds_run, run
from .progress import Shown

DEFAULT_OUT = Path("out/train")
CONFIG = "train.json"
# Keys that change nothing of what a run computes.
FREE = ("out", "workers", "trackers", "log_every", "keep", "save_every")


def out_folder(config: Config, out: str | Path | None) -> Path:
    return Path(out or config.out or DEFAULT_OUT)


def train(
    config: Config,
    out: str | Path | None = None,
    resume: bool = False,
    note: Callable[[str], None] = print,
    report: Callable[[Problem], None] = print,
) -> Path:
    """Train what `config` says; returns the folder of the model. `note` is told what a user should know.

    Raises ConfigError, TrainingError, ValueError and what loading models and data raises.
    """
    folder = out_folder(config, out)
    if is_first_process():
        check_out(folder, resume)
    if isinstance(config, TinyConfig):
        from .tiny.recipe import train_tiny

        train_tiny(config, folder, resume, note)
        return folder
    return train_on_rows(config, folder, resume, note, report)


def train_on_rows(
    config: RowsConfig,
    folder: Path,
    resume: bool,
    note: Callable[[str], None],
    report: Callable[[Problem], None],
) -> Path:
    if isinstance(config, FoveatedConfig):
        from .foveated.job import FoveatedJob as Kind
    else:
        from .conversations import ConversationsJob as Kind

    accelerator = new_accelerator(config.trackers, folder)
    main = accelerator.is_main_process
    if main:
        keep_config(config, folder, resume, note)
    set_seed(config.seed)
    with accelerator.main_process_first() if accelerator.num_processes > 1 else nullcontext():
        job = Kind(config, report if main else lambda problem: None)
    if main:
        problems, model = job.dataset.problems, job.model
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        note(
            f"{len(job.rows)} rows to train on, {len(job.held_out)} held out; {learning:,} of "
            f"{sum(p.numel() for p in model.parameters()):,} parameters learn; {job.steps} steps"
        )
        if len(problems):
            note(problems.summary())
    accelerator.init_trackers("firebolt", config={})
    options = LoopOptions(folder, config.save_every, config.keep, config.eval_every, resume)
    with Shown(folder.name, config.log_every, shown=main) as shown:
        run(job, accelerator, options, shown)
    close(accelerator)
    return folder


def is_first_process() -> bool:
    """As a launcher says, before there is an accelerator to ask."""
    return os.environ.get("RANK", "0") == "0"


def check_out(folder: Path, resume: bool) -> None:
    """Raises ConfigError where a run would be written over."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out: {folder} is a file; name a folder")
    if not resume and holds_run(folder):
        raise ConfigError(f"out: {folder} holds a run; --resume goes on with it, another --out starts anew")
    if not holds_run(folder) and (models := sorted({*folder.glob("*.safetensors"), *folder.glob("config.json")})):
        raise ConfigError(f"out: {folder} holds a model that no run wrote ({models[0].name}); name another folder")


def new_accelerator(trackers: list[str], folder: Path, cpu: bool = False) -> Accelerator:
    """One that leaves numbers as they are: autocast and accumulation are the job's. Raises ConfigError."""
    if "tensorboard" in trackers and find_spec("tensorboard") is None:
        raise ConfigError("trackers: tensorboard is not installed; pip install 'firebolt-vl[train]', or trackers=[]")
    # It says of each checkpoint that tied weights are written once.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # Where it is not told, accelerate lets several processes without a GPU know nothing of one another.
    cpu = cpu or not torch.accelerator.is_available()
    return Accelerator(mixed_precision="no", cpu=cpu, log_with=trackers or None, project_dir=str(folder / "logs"))


def close(accelerator: Accelerator) -> None:
    """Let go of what a run held; processes stay joined for another one (`end_training` would part them)."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.free_memory()


def leave_others() -> None:
    """Part from the other processes, where there are any."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def keep_config(config: Config, folder: Path, resume: bool, note: Callable[[str], None]) -> None:
    """Write the configuration beside the run; tell what differs from the one that a resumed run began with."""
    file, text = folder / CONFIG, to_json(config)
    if resume and file.is_file():
        before, now = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
        changed = [key for key in now if key not in FREE and before.get(key) != now[key]]
        for key in changed:
            note(
                f"{key} was {before.get(key)} when this run began and is {now[key]} now: it is another run from here on"
            )
    write_text(file, text)
