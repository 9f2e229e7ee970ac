"""Checks and steps of `from_pretrained` before transformers reads anything."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from .checkpoint_files import (
    CONFIG,
    PROCESSORS,
    TOKENIZERS,
    CheckpointError,
    Shapes,
    check_folder,
    check_parts,
    read_json,
    read_shapes,
    weight_files,
)
from .checkpoint_sizes import check_config, check_model, check_quantized_shapes
from .cpu.quantized_models import pack_quantized
from .places import HUB_ARGUMENTS, find
from .quantizers import check_quantized


class Opened(NamedTuple):
    """A checkpoint whose files can be read, its configuration as it stands and the shapes of its tensors."""

    folder: Path
    config: dict
    shapes: Shapes


def open_folder(name: str | PathLike, arguments: dict[str, Any]) -> Path:
    """Find the folder of a model (`places.find`), its files plain and of sizes that can be.

    What says where it is moves out of `arguments`, and into them comes that no code of it is run and that no other
    place is asked. Raises PlaceError, CheckpointError.
    """
    hub = {key: arguments.pop(key) for key in HUB_ARGUMENTS if key in arguments}
    folder = find(name, **hub) / (arguments.pop("subfolder", None) or "")
    check_folder(folder)
    if (folder / CONFIG).exists():
        check_config(read_json(folder / CONFIG), None, folder / CONFIG)
    arguments |= {"trust_remote_code": False, "local_files_only": True}
    return folder


def open_checkpoint(name: str | PathLike, arguments: dict[str, Any]) -> Opened:
    """Open a folder with whole safetensors files, and no size in its configuration that they do not have."""
    folder = open_folder(name, arguments)
    arguments["use_safetensors"] = True
    config = read_json(folder / CONFIG)
    shapes = read_shapes(folder)
    check_config(config, shapes, folder / CONFIG)
    return Opened(folder, config, shapes)


def open_image_processor(name: str | PathLike, arguments: dict[str, Any]) -> Path:
    """Open the folder of a model that has an image processor. Raises PlaceError, CheckpointError."""
    folder = open_folder(name, arguments)
    check_parts(folder, ("processor", PROCESSORS))
    return folder


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, in one file or in shards with an index. Raises CheckpointError."""
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= load_file(file)
    return state


def load_tokenizer(name: str | PathLike, **arguments):
    """Load the tokenizer of a model, by transformers' own class for it. Raises PlaceError, CheckpointError.

    Its `apply_chat_template` is transformers' too, which knows no limit of time or memory: for a folder of a stranger
    use that of a processor, or `chat_template.check_template` before it.
    """
    folder = open_folder(name, arguments)
    check_parts(folder, ("tokenizer", TOKENIZERS))
    with tokenizer_named(folder):
        return AutoTokenizer.from_pretrained(folder, **arguments)


@contextmanager
def tokenizer_named(folder: Path) -> Iterator[None]:
    """Raise a CheckpointError that names tokenizer.json where loading fails and reading that file is what fails."""
    try:
        yield
    except Exception:
        file = folder / TOKENIZERS[0]
        try:
            if file.is_file():
                Tokenizer.from_file(str(file))
        except Exception as error:  # the library's errors are plain Exceptions
            text = " ".join(str(error).split())
            raise CheckpointError(f"{file} cannot be read ({text}); copy or download it again") from None
        raise


def load_backbone(cls, name: str | PathLike, dtype: torch.dtype | None):
    """Load a model of transformers' class `cls`, of safetensors alone. Raises PlaceError, CheckpointError."""
    arguments: dict[str, Any] = {"dtype": dtype or "auto"}
    opened = open_checkpoint(name, arguments)
    return cls.from_pretrained(opened.folder, **arguments)


def load_checked(cls, load: Callable, name: str | PathLike | None, args: tuple, arguments: dict[str, Any]):
    """Load a model of the class `cls` by transformers' `load`, once it is known that the weights fill it."""
    if name is None:
        return _loaded(cls, load, None, args, arguments)
    opened = open_checkpoint(name, arguments)
    config, where = arguments.get("config"), opened.folder / CONFIG
    if isinstance(config, str | PathLike):
        config = arguments["config"] = cls.config_class.from_pretrained(open_folder(config, {}))
    if config is None:
        if (kind := opened.config.get("model_type")) != cls.config_class.model_type:
            raise CheckpointError(f"{where} is of a {kind!r} model; expected a {cls.config_class.model_type!r} model")
        config = cls.config_class.from_dict(dict(opened.config))
    if config.quantized is not None and not getattr(cls, "takes_quantized", False):
        raise CheckpointError(
            f"{where}: quantized is {config.quantized!r}; {cls.__name__} expects weights that are not; take the "
            "checkpoint that it was made from"
        )
    check_quantized_shapes(config.quantized, opened.shapes, where)
    check_model(lambda: cls(config), opened.shapes, where)
    return _loaded(cls, load, opened.folder, args, arguments)


def _loaded(cls, load: Callable, folder: Path | None, args: tuple, arguments: dict[str, Any]) -> Any:
    """Load, and compare the result with what a quantiser that was asked for should have made of it."""
    asked = arguments.get("quantization_config")
    loaded = load(folder, *args, **arguments)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    pack_quantized(model)
    if asked is not None:
        check_quantized(model, lambda: cls(copy.deepcopy(model.config)), type(asked).__name__)
    return loaded


__all__ = [
    "Opened",
    "load_backbone",
    "load_checked",
    "load_tokenizer",
    "open_checkpoint",
    "open_folder",
    "open_image_processor",
    "read_weights",
    "tokenizer_named",
]
