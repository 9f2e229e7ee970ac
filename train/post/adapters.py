"""Adapters (peft) in a folder of their own, merged into the model that they were trained beside."""

import contextlib
import io
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...model.checkpoint_files import ADAPTER as CONFIG
from ...model.checkpoint_files import read_json
from ..errors import ConfigError
from .checkpoints import ADAPTERS_FILE as WEIGHTS
from .models import load_model, write_trained


def base_of(adapters: Path) -> str:
    """The model that adapters were trained beside, as their configuration names it. Raises ConfigError."""
    _check_files(adapters)
    try:
        named = read_json(adapters / CONFIG).get("base_model_name_or_path")
    except (OSError, ValueError) as error:
        raise ConfigError(f"ADAPTERS is {adapters}, whose {CONFIG} cannot be read ({error}); copy it again") from None
    if not isinstance(named, str) or not named:
        raise ConfigError(f"ADAPTERS is {adapters}, whose {CONFIG} names no model; name it with --model")
    return named


def merge(adapters: Path, base: str, out: Path) -> None:
    """Write the model `base` with `adapters` added to its weights to the folder `out`, and its processor.

    Each weight W becomes W + (alpha / rank) B A (docs/mathematics.md, 8.4).

    Raises ConfigError, before anything is written, where a file is missing or not safetensors, the model's weights are
    quantised, or adapters and model do not fit.
    """
    _check_files(adapters)
    names = _tensors(adapters / WEIGHTS)
    model, processor = load_model(base, "--model")
    from peft import PeftModel, get_peft_model_state_dict

    try:
        # It says of a module that is missing only what the error below says better.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            added = PeftModel.from_pretrained(model, str(adapters), use_safetensors=True)
    except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
        raise ConfigError(
            f"ADAPTERS is {adapters}, which does not fit the model {base} ({' '.join(str(error).split())[:200]}); name "
            "the one that it was trained beside with --model"
        ) from None
    if missed := sorted(names ^ set(get_peft_model_state_dict(added))):
        raise ConfigError(
            f"ADAPTERS is {adapters}, whose {missed[0]} (and {len(missed) - 1} more) has no place in the model {base}; "
            "name the one that it was trained beside with --model"
        )
    with torch.no_grad():
        merged = added.merge_and_unload()
    write_trained(merged, processor, out)


def _check_files(adapters: Path) -> None:
    if not adapters.is_dir():
        raise ConfigError(f"ADAPTERS is {adapters}, which is no folder; expected one with {CONFIG} and {WEIGHTS}")
    for name in (CONFIG, WEIGHTS):
        if not (adapters / name).is_file():
            pickles = " (adapter_model.bin is a pickle, which can run code, and is not read)"
            said = pickles if (adapters / "adapter_model.bin").exists() else ""
            raise ConfigError(f"ADAPTERS is {adapters}, which has no {name}{said}; expected a folder of adapters")


def _tensors(file: Path) -> set[str]:
    """The names of a file's tensors. Raises ConfigError where it is damaged."""
    try:
        with safe_open(file, "pt") as content:
            return set(content.keys())
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"ADAPTERS has {file.name}, which is damaged ({error}); copy it again") from None
