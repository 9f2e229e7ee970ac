"""Checks of the files of a stranger's checkpoint before anything is built of it.

Nothing here runs code of a checkpoint, waits for a pipe, follows an index out of the folder, or takes memory in
proportion to what a file merely claims: of the weights only headers are read, and they bound what the configuration may
make (`checkpoint_sizes`).
"""

import math
import os
import stat
from os import PathLike
from pathlib import Path

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
        raise CheckpointError(f"{path} is no text ({first_line(error)}); copy or download it again") from None


def read_json(path: Path) -> dict:
    """Read a JSON object in a file of a checkpoint. Raises CheckpointError."""
    check_file(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8-sig"))  # transformers reads no other encoding
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); copy or download it again") from None
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
            f"{path} is damaged or incomplete ({first_line(error)}); copy or download it again"
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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


__all__ = [
    "CheckpointError",
    "check_folder",
    "check_parts",
    "first_line",
    "read_json",
    "read_shapes",
    "refuse_pickles",
    "weight_files",
]
