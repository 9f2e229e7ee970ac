"""Checks of a stranger's checkpoint before anything is built of it: the kinds of its files, and whether its sizes fit.

Nothing here runs code of a checkpoint, waits for a pipe, follows an index out of the folder, or takes memory in
proportion to what a file merely claims: of the weights only headers are read, and they bound what the configuration may
make.
"""

import math
import os
import re
import stat
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ..files.reading import parse_json

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
PROCESSORS = ("processor_config.json", "preprocessor_config.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
MB = 1_000_000
# The largest files that are read whole. JSON takes some thirty times its size once it is read.
SMALL_JSON = (
    *(CONFIG, INDEX, ADAPTER, "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("video_preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.json",
)
MOST_BYTES = {
    **dict.fromkeys(SMALL_JSON, 4 * MB),
    **dict.fromkeys(("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "merges.txt"), 64 * MB),
}
MOST_BYTES_OF_KIND = {".model": 64 * MB, ".jinja": 100_000}
MOST_HEADER_BYTES = 16 * MB
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


class CheckpointError(OSError):
    """A checkpoint that is not whole, not safe to open, or does not fit itself."""


Shapes = dict[str, tuple[int, ...]]
"""Of every tensor, by its name."""


def check_folder(folder: str | PathLike) -> None:
    """Raise CheckpointError where an entry of a checkpoint's folder is no plain file or larger than such a file can be.

    A link counts as what it leads to. Folders are let be, but for one with the name of a file that is read.
    """
    folder = Path(folder)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be looked through ({error.strerror})") from None
    for name in names:
        if _is_read(name):
            check_file(folder / name)
        if name in SMALL_JSON:
            read_json(folder / name)
        elif name.endswith(".jinja"):
            check_text(folder / name)
    for name in ("additional_chat_templates", "chat_templates"):
        if (folder / name).is_dir():
            check_folder(folder / name)
    if ADAPTER in names:
        raise CheckpointError(
            f"checkpoint {folder} holds adapters ({ADAPTER}) for another model, which may be anywhere; merge them into "
            "it with peft (merge_and_unload, save_pretrained), and name that folder"
        )


def _is_read(name: str) -> bool:
    return name in MOST_BYTES or name.endswith((*MOST_BYTES_OF_KIND, ".safetensors", ".txt", ".tiktoken"))


def check_file(path: Path) -> os.stat_result:
    """Return the status of a plain file of a size that can be. Raises CheckpointError for anything else, unopened."""
    try:
        found = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link to nothing; copy or download all of it again") from None
        raise CheckpointError(
            f"checkpoint {path.parent} has no {path.name}; is it a checkpoint, and all of it?"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be opened ({error.strerror}); copy or download it again") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise CheckpointError(f"{path} is {kind}; expected a file; copy or download it again")
    most = MOST_BYTES.get(path.name, MOST_BYTES_OF_KIND.get(path.suffix, math.inf))
    if found.st_size > most:
        raise CheckpointError(
            f"{path} is {found.st_size:,} bytes large; expected a {path.name} of at most {most:,}; download it again"
        )
    return found


def check_text(path: Path) -> None:
    """Raise CheckpointError where a file, whose kind and size are known, is no text."""
    try:
        path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no text ({_first_line(error)}); copy or download it again") from None


def read_json(path: Path) -> dict:
    """Read a JSON object in a file of a checkpoint. Raises CheckpointError."""
    check_file(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))  # transformers reads no other encoding
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); copy or download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object; copy or download it again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a checkpoint. Raises CheckpointError where there are none, or not all of them."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        refuse_pickles(folder)
        raise CheckpointError(f"checkpoint {folder} has no weights ({WEIGHTS}); copy or download all of it again")
    shards = sorted(set(_weight_map(folder).values()))
    if outside := [name for name in shards if Path(name).name != name or not name.endswith(".safetensors")]:
        raise CheckpointError(
            f"{folder / INDEX} names {outside[0]}, which is no safetensors file of the checkpoint's folder"
        )
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise CheckpointError(
            f"checkpoint {folder} lacks {len(missing)} of its {len(shards)} weight files ({missing[0]}); copy or "
            "download all of it again"
        )
    return [folder / name for name in shards]


def _weight_map(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map; copy or download it again")
    return weight_map


def refuse_pickles(folder: Path) -> None:
    """Raise CheckpointError, with what to do, where weights lie in files that could run code when they are opened."""
    if found := sorted(name for name in os.listdir(folder) if name.endswith(PICKLES)):
        raise CheckpointError(
            f"checkpoint {folder} has its weights in pickle files ({found[0]}), which can run code when they are "
            "opened and are refused; get a safetensors copy of it, or make one of files that you trust "
            "(docs/checkpoints.md, Pickled weights)"
        )


def read_shapes(folder: Path) -> Shapes:
    """Read the shape of every tensor of a checkpoint, from the headers alone. Raises CheckpointError."""
    shapes: Shapes = {}
    files = weight_files(folder)
    for path in files:
        shapes |= _header(path)
    if len(files) > 1 or files[0].name != WEIGHTS:
        for name, file in _weight_map(folder).items():
            if name not in shapes:
                raise CheckpointError(f"{folder / file} lacks {name}; copy or download it again")
    return shapes


def _header(path: Path) -> Shapes:
    from safetensors import SafetensorError, safe_open

    size = check_file(path).st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise SafetensorError(f"its header claims {length:,} bytes, the file has {size:,}")
        if length > MOST_HEADER_BYTES:
            raise SafetensorError(f"its header is {length:,} bytes long, at most {MOST_HEADER_BYTES:,} are read")
        with safe_open(path, "pt") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or incomplete ({_first_line(error)}); copy or download it again"
        ) from None
    if size > (memory := _memory()):
        raise CheckpointError(f"{path} is {size / 1e9:,.0f} GB large, and this machine has {memory / 1e9:,.0f} GB")
    return shapes


def _memory() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return math.inf


def check_parts(folder: Path, *wanted: tuple[str, tuple[str, ...]]) -> None:
    """Raise CheckpointError where a part of a checkpoint is in none of the files that it may be in."""
    for kind, names in wanted:
        if not any((folder / name).is_file() for name in names):
            raise CheckpointError(f"checkpoint {folder} has no {kind} ({names[0]}); copy or download all of it again")


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
        raise CheckpointError(f"{where}: a model of these sizes cannot be made ({_first_line(error)})") from None
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


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


__all__ = [
    "CheckpointError",
    "check_config",
    "check_folder",
    "check_model",
    "check_parts",
    "read_json",
    "read_shapes",
    "refuse_pickles",
    "weight_files",
]
