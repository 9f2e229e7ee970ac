"""Start of a training: from a configuration to a trained model."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from accelerate.utils import set_seed

from ..model.places import PlaceError, find_here
from .config import Config, FoveatedConfig, RowsConfig, TinyConfig
from .conversations import ConversationsJob
from .data import Problem
from .errors import ConfigError
from .foveated.job import FoveatedJob
from .loop import LoopOptions, run, skipped_words
from .outputs import alone_in, check_out, keep_config
from .post.config import PostConfig
from .post.run import train_post
from .progress import Shown
from .run_config import EVAL_EVERY, RunConfig
from .screens.config import ScreensConfig
from .screens.recipe import train_screens
from .session import close, is_first_process, new_accelerator, slow_precision
from .tiny.recipe import train_tiny

DEFAULT_OUT = Path("out/train")


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
            if isinstance(config, RunConfig) and (line := slow_precision(config.precision)):
                note(line)
        if isinstance(config, TinyConfig):
            train_tiny(config, folder, resume, note)
        elif isinstance(config, ScreensConfig):
            train_screens(config, folder, resume, note)
        elif isinstance(config, PostConfig):
            train_post(config, folder, resume, note, report)
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
    accelerator = new_accelerator(config.trackers, folder)
    main = accelerator.is_main_process
    set_seed(config.seed)
    with accelerator.main_process_first() if accelerator.num_processes > 1 else nullcontext():
        kind = FoveatedJob if isinstance(config, FoveatedConfig) else ConversationsJob
        job = kind(config, report if main else lambda problem: None)
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


def check_inputs(config: Config) -> None:
    """Check files and folders, before anything is loaded, made or asked for on the network.

    Raises ConfigError.
    """
    if isinstance(config, TinyConfig | ScreensConfig):
        return
    for key in ("data", "validation"):
        for file in getattr(config, key):
            if not Path(file).is_file():
                raise ConfigError(f"{key}: {file} does not exist; name the rows to train on ({key}=FILE)")
    if config.image_root is not None and not Path(config.image_root).is_dir():
        raise ConfigError(f"image_root is {config.image_root}; expected a folder that exists")
    for key in ("model", "decoder", "vision", "tokenizer"):
        if (place := getattr(config, key, None)) is not None:
            try:
                find_here(place)
            except PlaceError as error:
                raise ConfigError(f"{key}: {error}") from None
