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
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, set_seed

from ..files.writing import write_text
from ..model.places import PlaceError, find_here
from .config import EVAL_EVERY, Config, FoveatedConfig, RowsConfig, TinyConfig
from .config_files import to_json
from .data import Problem
from .errors import ConfigError
from .keys import check_choice
from .loop import LoopOptions, run, skipped_words
from .outputs import CONFIG, alone_in, check_out, read_config
from .progress import Shown

DEFAULT_OUT = Path("out/train")
# Keys that change nothing of what a run computes.
FREE = ("out", "workers", "trackers", "log_every", "keep", "save_every", "max_bad_steps")


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
    check_inputs(config)
    with alone_in(folder, note) if is_first_process() else nullcontext():
        if is_first_process():
            check_out(folder, resume)
        if isinstance(config, TinyConfig):
            from .tiny.recipe import train_tiny

            train_tiny(config, folder, resume, note)
        else:
            train_on_rows(config, folder, resume, note, report)
    return folder


def train_on_rows(
    config: RowsConfig,
    folder: Path,
    resume: bool,
    note: Callable[[str], None],
    report: Callable[[Problem], None],
) -> None:
    if isinstance(config, FoveatedConfig):
        from .foveated.job import FoveatedJob as Kind
    else:
        from .conversations import ConversationsJob as Kind

    accelerator = new_accelerator(config.trackers, folder)
    main = accelerator.is_main_process
    set_seed(config.seed)
    with accelerator.main_process_first() if accelerator.num_processes > 1 else nullcontext():
        job = Kind(config, report if main else lambda problem: None)
    if main:
        keep_config(config, folder, resume, note)
        problems, model = job.dataset.problems, job.model
        learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
        note(
            f"{len(job.rows)} rows to train on, {len(job.held_out)} held out; {learning:,} of "
            f"{sum(p.numel() for p in model.parameters()):,} parameters learn; {job.steps} steps"
        )
        if len(problems):
            note(problems.summary())
    accelerator.init_trackers("firebolt", config={})
    eval_every = EVAL_EVERY if config.eval_every is None else config.eval_every
    options = LoopOptions(
        folder, config.save_every, config.keep, eval_every, resume, max_bad_steps=config.max_bad_steps
    )
    with Shown(folder.name, config.log_every, shown=main) as shown:
        skipped = run(job, accelerator, options, shown)
    close(accelerator)
    if main and skipped:
        note(skipped_words(skipped, job.steps))


def is_first_process() -> bool:
    """As a launcher says, before there is an accelerator to ask."""
    return os.environ.get("RANK", "0") == "0"


def check_inputs(config: Config) -> None:
    """What can be known of files and folders at once, before anything is loaded, made or asked for on the network.

    Raises ConfigError.
    """
    if isinstance(config, TinyConfig):
        return
    for key in ("data", "validation"):
        for file in getattr(config, key):
            if not Path(file).is_file():
                raise ConfigError(f"{key}: {file}: there is no such file; name the rows to train on ({key}=FILE)")
    if config.image_root is not None and not Path(config.image_root).is_dir():
        raise ConfigError(f"image_root: {config.image_root}: there is no such folder")
    for key in ("model", "decoder", "vision", "tokenizer"):
        if (place := getattr(config, key)) is not None:
            try:
                find_here(place)
            except PlaceError as error:
                raise ConfigError(f"{key}: {error}") from None


def new_accelerator(trackers: list[str], folder: Path, cpu: bool = False) -> Accelerator:
    """One that leaves numbers as they are: autocast and accumulation are the job's. Raises ConfigError."""
    for tracker in trackers:
        check_choice("trackers", tracker, [one.value for one in LoggerType if one != LoggerType.ALL])
    if "tensorboard" in trackers and find_spec("tensorboard") is None:
        raise ConfigError("trackers: tensorboard is not installed; pip install 'firebolt-vl[train]', or trackers=[]")
    there = [one.value for one in get_available_trackers()]
    for tracker in trackers:
        if tracker not in there:
            raise ConfigError(f"trackers: {tracker} is not installed; install it, or leave it out")
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
    if resume and (before := read_config(folder)):
        now = json.loads(text)
        changed = [key for key in now if key not in FREE and before.get(key) != now[key]]
        for key in changed:
            note(
                f"{key} was {before.get(key)} when this run began and is {now[key]} now: it is another run from here on"
            )
    write_text(file, text)
