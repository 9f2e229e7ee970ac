"""Comparison of a checkpoint's configuration with the shapes of its weights, before anything is built of it."""

import math
import re
from collections.abc import Callable, Iterator
from os import PathLike
from typing import Any

import torch

from .checkpoint_files import CONFIG, MB, CheckpointError, Shapes, first_line

# Numbers in a configuration that no tensor has to be as large as.
FREE_NUMBERS = re.compile(
    r"(token_id|token_index|position|theta|window|factor|scal|norm|eps|range|seed|top_k|length|mean|std|beta|alpha)"
)
# Below it a number may be larger than every size of the weights.
SMALL_NUMBER, SMALL_STATE = 65_536, 256
# Where there are no weights to compare with, as beside a tokenizer alone.
UNSEEN_LAYERS, UNSEEN_SIZE = 1_000, 1_000_000
MOST_ENTRIES = 10_000
LAYER_NUMBER = re.compile(r"\.(\d+)\.")
# What is built beyond the weights: a tied head, tables that are not saved.
SPARE_NUMBERS = 16 * MB
SPARE_SHARE = 1.25


def check_config(config: dict, shapes: Shapes | None, where: str | PathLike = CONFIG) -> None:
    """Compare the numbers of a configuration with the weights, before anything is built of it. Raises CheckpointError.

    A number of layers is at most that which the tensors are numbered by, every other size at most the largest size of a
    tensor; without `shapes`, what any model has. What transformers would take for a place of code, or for another way
    to hold weights, is refused.
    """
    layers, largest, states = _limits(shapes)
    if long := next((key for key, value in _lists(config) if len(value) > MOST_ENTRIES), None):
        raise CheckpointError(f"{where}: {long} is too long a list; expected at most {MOST_ENTRIES:,} entries")
    for key, value in _entries(config):
        name = key.rpartition(".")[2]
        if name.endswith("_implementation") and isinstance(value, str) and not re.fullmatch(r"\w+", value):
            raise CheckpointError(f"{where}: {key} is {value!r}; expected no program from the hub, which is not run")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise CheckpointError(f"{where}: {key} is {value}; expected a finite number")
        if re.fullmatch(r"(num_(hidden_)?layers|n_layers?|depth)", name) and value > layers:
            raise CheckpointError(
                f"{where}: {key} is {value:,}; expected at most {layers:,}, the layers of the weights; they do not "
                "belong together"
                if shapes is not None
                else f"{where}: {key} is {value:,}; expected at most {layers:,}"
            )
        if name == "state_size" and shapes is not None and value > SMALL_STATE and value not in states:
            raise CheckpointError(f"{where}: {key} is {value:,}; expected the size of a state in the weights")
        if not FREE_NUMBERS.search(name) and value > max(largest, SMALL_NUMBER):
            raise CheckpointError(
                f"{where}: {key} is {value:,}; expected at most {largest:,}, the largest size in the weights; they do "
                "not belong together"
            )
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            raise CheckpointError(
                f"{where}: {key} is given; expected weights that are not quantised; take the checkpoint before that, "
                "and --quantize int8"
            )


def _limits(shapes: Shapes | None) -> tuple[int, int, set[int]]:
    """The most layers, the largest size, and the sizes that a state may have."""
    if shapes is None:
        return UNSEEN_LAYERS, UNSEEN_SIZE, set()
    numbers = [int(found) for name in shapes for found in LAYER_NUMBER.findall(name) if len(found) < 10]
    states = {n * size for name, sizes in shapes.items() if ".ssm." in name for size in sizes for n in (1, 2)}
    return 1 + max(numbers, default=-1), max((size for sizes in shapes.values() for size in sizes), default=0), states


def _entries(config: dict) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested objects and lists, these included."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += [(f"{key}.{name}" if key else str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(key, inner) for inner in value]


def _lists(config: dict) -> Iterator[tuple[str, list]]:
    return ((key, value) for key, value in _entries(config) if isinstance(value, list))


def check_model(build: Callable[[], torch.nn.Module], shapes: Shapes, where: str | PathLike = CONFIG) -> None:
    """Build the model without memory (`build()` on PyTorch's meta device) and compare it with the weights.

    What the configuration makes, parameters and tables, may be little larger than all tensors together. Raises
    CheckpointError.
    """
    try:
        with torch.device("meta"):
            model = build()
    except RuntimeError as error:  # sizes beyond 64 bits
        raise CheckpointError(f"{where}: a model of these sizes cannot be made ({first_line(error)})") from None
    made = {name: tuple(tensor.shape) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    wanted = sum(map(math.prod, made.values()))
    there = sum(map(math.prod, shapes.values()))
    if wanted <= SPARE_SHARE * there + SPARE_NUMBERS:
        return
    for name, sizes in made.items():
        if name in shapes and shapes[name] != sizes:
            raise CheckpointError(
                f"{name} has shape {list(shapes[name])}, config.json makes it {list(sizes)}; the weights and "
                f"{where} do not belong together"
            )
    raise CheckpointError(
        f"{where} makes a model of {wanted:,} numbers, the weights hold {there:,}; they do not belong together"
    )


def check_quantized_shapes(kind: str | None, shapes: Shapes, where: str | PathLike = CONFIG) -> None:
    """Compare what a configuration says of quantised weights, "int8", "int4" or None, with the names of the weights.

    Raises CheckpointError.
    """
    there = [bits for bits in ("int4", "int8") if any(name.endswith(f".{bits}_weight") for name in shapes)]
    found = there[0] if there else None  # a model in 4 bits has its head in 8
    if kind != found:
        raise CheckpointError(
            f"{where}: quantized is {kind!r}; expected {found!r}, as the weights are; they do not belong together"
        )


__all__ = ["check_config", "check_model", "check_quantized_shapes"]
