"""A training by trl, from its configuration to a model."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from ...model import FireboltForConditionalGeneration
from ...model.video import read_video
from ..conversations import read_data
from ..data import Problem
from ..errors import ConfigError, Stopped, TrainingError
from ..interrupts import Interrupts
from ..loop import HISTORY, PLOT, plot_history, read_history, skipped_words, write_model
from ..outputs import keep_config
from ..progress import Shown
from ..session import check_trackers, is_first_process
from ..tensors import first_not_finite
from .checkpoints import CHECKPOINTS, kept_in, load_weights, newest, step_of, steps_of
from .config import DpoConfig, GrpoConfig, PostConfig
from .goals import goal_of
from .habits import Habits
from .models import choose_parts, drop_nothing, load_model, write_trained
from .rows import Source

ADAPTERS = "adapters"


def train_post(
    config: PostConfig, folder: Path, resume: bool, note: Callable[[str], None], report: Callable[[Problem], None]
) -> None:
    """Train what `config` says by trl, into `folder`.

    Raises ConfigError, TrainingError, Stopped, and what reading models and data raises.
    """
    trainers = _trainers()
    check_trackers(config.trackers)
    main, processes = is_first_process(), int(os.environ.get("WORLD_SIZE", "1"))
    assert config.model is not None  # since PostConfig's `__post_init__`
    model, processor = load_model(config.model, "model")
    check_kind(config, model)
    reading: dict = {}
    if not isinstance(model, FireboltForConditionalGeneration):
        reading["read_video"] = lambda file: read_video(file, frames=config.frames).frames
    elif not isinstance(config, GrpoConfig):  # trl samples answers to images alone
        reading["read_video"] = lambda file: [read_video(file, frames=config.frames)]
    if isinstance(config, DpoConfig):
        reading["preferences"] = True
    if isinstance(config, GrpoConfig):
        reading["check"] = lambda row: goal_of(row, tuple(config.rewards))
    dataset, rows, held_out, validation = read_data(
        config, processor, report if main else lambda problem: None, **reading
    )
    choose_parts(model, config.train)
    if isinstance(config, DpoConfig | GrpoConfig):
        drop_nothing(model)
    parts = trainers.Parts(model, processor, Source(dataset, rows), Source(validation, held_out), folder)
    trainer = trainers.trainer_of(config, parts, processes)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ConfigError(
            f"distributed_type is {trainer.accelerator.distributed_type.value}; expected MULTI_GPU, or one process, "
            "for a training by trl"
        )
    if main:
        keep_config(config, folder, resume, note)
        learning = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        note(
            f"{len(rows)} rows to train on, {len(held_out)} held out; {learning:,} of "
            f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters learn"
        )
        if len(dataset.problems):
            note(dataset.problems.summary())
    with Shown(folder.name, config.log_every, shown=main) as shown, Interrupts(processes == 1) as interrupts:
        skipped = _train(trainer, config, parts, resume, shown, interrupts)
    if main and skipped:
        note(skipped_words(skipped, trainer.state.max_steps or config.max_steps))


def _train(trainer, config: PostConfig, parts, resume: bool, shown, interrupts: Interrupts) -> int:
    """Train, and write the model; returns how many steps were skipped."""
    folder = parts.folder

    def save(into: Path) -> None:
        write_model(lambda place: _write(trainer, parts, place), into, trainer.accelerator)

    habits = Habits(
        folder,
        config,
        bool(len(parts.held_out.rows)),
        shown,
        lambda: save(folder / "best"),
        interrupts,
        trainer.accelerator,
    )
    trainer.add_callback(habits)
    checkpoint = newest(folder / CHECKPOINTS) if resume else None
    habits.go_on_from(step_of(checkpoint) if checkpoint else 0)
    try:
        if checkpoint is not None and step_of(checkpoint) >= steps_of(checkpoint, config):
            # The trainer would take another step.
            load_weights(trainer.model, checkpoint)
        else:
            with warnings.catch_warnings():
                # Of names that trl calls transformers by.
                warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except Stopped:
        raise
    except KeyboardInterrupt:
        raise Stopped(f"stopped at once; {kept_in(folder / CHECKPOINTS)}") from None
    if (name := first_not_finite(dict(trainer.model.named_parameters()))) is not None:
        raise TrainingError(f"{name} is not finite; the model is not written to {folder}. A lower rate may help (lr=)")
    if config.lora is not None:
        write_model(lambda place: trainer.model.save_pretrained(place), folder / ADAPTERS, trainer.accelerator)
    save(folder)
    if trainer.is_world_process_zero():
        plot_history(read_history(folder / HISTORY), folder / PLOT)
    return habits.skipped


def _write(trainer, parts, place: Path) -> None:
    if trainer.is_world_process_zero():
        write_trained(parts.model, parts.processor, place)


def check_kind(config: PostConfig, model: PreTrainedModel) -> None:
    """Check that this kind of training can be of this kind of model. Raises ConfigError."""
    if not isinstance(config, GrpoConfig):
        return
    if not isinstance(model, FireboltForConditionalGeneration):
        raise ConfigError(f"model is {config.model}, a foveated model; expected Firebolt for a training on rewards")
    if model.config.fusion != "replace":
        raise ConfigError(
            f"model is {config.model}, of fusion {model.config.fusion!r}; expected 'replace' for a training on "
            "rewards, where it is not told which columns are the question"
        )


def _trainers():
    """The trainers, which need trl. Raises ConfigError where it, or what it needs, is missing."""
    try:
        from . import trainers
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"recipe needs {error.name}, which is not installed; pip install 'firebolt-vl[train,trl]'"
        ) from None
    return trainers
