"""Configurations of kernels: tiles, warps and stages by kernel, dtype, size class and chip.

A launcher states the one that is predicted to be quick. A file of its chip, written by `firebolt bench gpu-day`, may
know a better one: `measured/CHIP.json` beside this module for everyone, `configurations/CHIP.json` in the folder
`FIREBOLT_CACHE` (~/.cache/firebolt-vl) for this machine, which comes first. Nothing is tried out while a model runs.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MEASURED = Path(__file__).with_name("measured")


class Question(NamedTuple):
    """Question of a launcher."""

    kernel: str
    dtype: str
    size: str
    """The size class: each size that matters, rounded up to a power of two, such as "L=512 N=32"."""
    default: dict[str, int]
    """Parameters of the kernel and options of its launch."""


Table = dict[tuple[str, str, str], dict[str, int]]
"""Configurations by kernel, dtype and size class."""

Answer = Callable[[Question], dict[str, int]]
_answer: Answer | None = None


@contextmanager
def answering(answer: Answer) -> Iterator[None]:
    """A region in which `answer` gives the configuration of every launch, whatever the device and its files."""
    global _answer
    before, _answer = _answer, answer
    try:
        yield
    finally:
        _answer = before


def configured(
    kernel: Any, like: Tensor, sizes: Mapping[str, int], default: dict[str, int], fixed: Sequence[str] = ()
) -> dict[str, int]:
    """Return the configuration of a kernel for tensors like one: measured on its device, or `default`.

    What `fixed` names of the default is as large as it has to be: no file and nobody is asked for it.
    """
    if _answer is None and (like.device.type != "cuda" or not _table(like.device.index)):
        return default
    kept = {name: default[name] for name in fixed}
    question = _question(kernel, like, sizes, {name: value for name, value in default.items() if name not in kept})
    if _answer is not None:
        return _answer(question) | kept
    found = _table(like.device.index).get(question[:3])
    if found is None:
        return default
    if found.keys() != question.default.keys():
        _warn(
            f"{question.kernel} has {', '.join(found)} in the file of this GPU; expected {', '.join(question.default)}"
        )
        return default
    return found | kept


def _question(kernel: Any, like: Tensor, sizes: Mapping[str, int], default: dict[str, int]) -> Question:
    return Question(kernel.fn.__name__, str(like.dtype).removeprefix("torch."), size_class(sizes), default)


def size_class(sizes: Mapping[str, int]) -> str:
    """Round sizes up to powers of two."""
    return " ".join(f"{name}={1 << max(0, size - 1).bit_length()}" for name, size in sizes.items())


@cache
def _table(index: int) -> Table:
    name = torch.cuda.get_device_name(index)
    table: Table = {}
    for file in files_of(name):
        try:
            table |= read_table(file.read_text(encoding="utf-8"), str(file))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            _warn(str(error))
    return table


def files_of(chip: str) -> tuple[Path, Path]:
    """Return the files for a chip, by the name that its driver gives it; what the later one has counts."""
    file = re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-") + ".json"
    cached = Path(os.environ.get("FIREBOLT_CACHE", "~/.cache/firebolt-vl")).expanduser()
    return MEASURED / file, cached / "configurations" / file


def read_table(text: str, name: str) -> Table:
    """Read a file's text: {"configurations": [{"kernel", "dtype", "size", "set": {"BLOCK_D": 64, ...}}, ...]}.

    Raises ValueError, in a line that begins with `name`, for anything else.
    """
    try:
        entries = json.loads(text)["configurations"]
        return {(entry["kernel"], entry["dtype"], entry["size"]): _checked(entry["set"]) for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name}: is no table of configurations ({type(error).__name__}: {error})") from None


def _checked(values: dict[str, Any]) -> dict[str, int]:
    for name, value in values.items():
        # Blocks and warps are powers of two.
        if type(value) is not int or value < 1 or (value & (value - 1) and name != "num_stages"):
            raise ValueError(f"{name} is {value!r}; expected a power of two")
    return values


def _warn(what: str) -> None:
    warnings.warn(f"configurations: {what}; the defaults are used", stacklevel=3)
