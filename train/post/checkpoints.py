"""Checkpoints of a run by trl: those of transformers' Trainer, each sealed by a list of its files and their sums.

A checkpoint without its seal, or with another file than the seal says, is one that was being written when the run was
killed, or is damaged; it is told of, and the one before it taken.
"""

import json
import shutil
import warnings
from pathlib import Path

from safetensors.torch import load_file, load_model
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from ...files.writing import write_text
from ..checkpoints import MANIFEST, files_below, flush, sum_of, sums_of
from .config import PostConfig

ADAPTERS_FILE = "adapter_model.safetensors"
# Of transformers' Trainer, beside the weights of each of its checkpoints.
TRAINER_STATE = "trainer_state.json"

CHECKPOINTS, NAME = "checkpoints", "checkpoint-"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not; the newest first."""
    found = [path for path in folder.glob(f"{NAME}*") if path.name.removeprefix(NAME).isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(NAME))


def steps_of(checkpoint: Path, config: PostConfig) -> int:
    """The last step of the run that a checkpoint is of."""
    if config.max_steps is not None:
        return config.max_steps
    return int(json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))["max_steps"])


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load what a checkpoint has of a model: all of it, or adapters alone."""
    adapters = checkpoint / ADAPTERS_FILE
    if not adapters.is_file():
        load_model(model, checkpoint / SAFE_WEIGHTS_NAME)
        return
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(adapters))


def seal(checkpoint: Path) -> None:
    """Write down which files a checkpoint has, once all of them are on the disk. Raises OSError."""
    for file in files_below(checkpoint):
        flush(file)
    listed = {str(file.relative_to(checkpoint)): sums_of(file) for file in files_below(checkpoint)}
    write_text(checkpoint / MANIFEST, json.dumps({"files": listed, "sum": sum_of(listed)}, indent=1))
    flush(checkpoint)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, with a warning for each that is not; None where there is none.

    Checkpoints of later steps are removed: they are damaged, or the run would write them again.
    """
    found = None
    for checkpoint in checkpoints_in(folder):
        if found is None and (why := _damage(checkpoint)) is None:
            found = checkpoint
        elif found is None:
            warnings.warn(f"checkpoint {checkpoint} is damaged ({why}); the one before it is taken", stacklevel=2)
            shutil.rmtree(checkpoint, ignore_errors=True)  # several processes do
    return found


def keep_newest(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest ones."""
    for old in checkpoints_in(folder)[keep:]:
        shutil.rmtree(old)


def kept_in(folder: Path) -> str:
    """Tell what a run can be resumed from."""
    sealed = [path for path in checkpoints_in(folder) if (path / MANIFEST).is_file()]
    return f"{sealed[0]} is kept" if sealed else "no checkpoint was written before"


def _damage(checkpoint: Path) -> str | None:
    """Tell what is wrong with a checkpoint; None where nothing is."""
    try:
        sealed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        listed = sealed["files"]
        if sealed["sum"] != sum_of(listed):
            return f"{MANIFEST} is not what was written"
        for name, sums in listed.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if sums_of(checkpoint / name) != sums:
                return f"{name} is not what was written"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    return None
