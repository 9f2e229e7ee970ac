"""Places of models: on this machine first, on the hub only where its name cannot be meant otherwise."""

import difflib
import re
from importlib.resources import files
from os import PathLike
from pathlib import Path

EMBEDDED = "tiny"
HUB = "hf:"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# A name that ends like one of these is meant as a file.
FILE_ENDINGS = (
    *(".json", ".jsonl", ".jinja", ".toml", ".yaml", ".yml", ".txt", ".csv", ".md", ".py"),
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz", ".gguf", ".onnx"),
    *(".zip", ".tar", ".gz", ".tgz", ".7z"),
)
# What is fetched from the hub: of the formats that hold code (.py, .bin, .pt) nothing.
NEEDED = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# Parts of the names of huggingface_hub's errors.
REASONS = {
    "LocalEntryNotFound": "it was not fetched before, and the hub cannot be asked",
    "Offline": "it was not fetched before, and the hub is not asked while HF_HUB_OFFLINE is set",
    "GatedRepo": "it is given to those who ask on its page; then `hf auth login`",
    "RepositoryNotFound": "there is none of that name, or it is private",
    "RevisionNotFound": "it has no such revision",
}


class PlaceError(OSError):
    """Name that no model has, here or on the hub."""


def find(name: str | PathLike, patterns: tuple[str, ...] = NEEDED, **hub) -> Path:
    """Find the folder of a model.

    `name` is a folder (`~` is the home); or "tiny", the model in this package, where no folder has that name; or a
    model on the hub, whose files that match `patterns` are fetched: `hf:ORG/NAME`, or `ORG/NAME` where that cannot be
    meant as a path, since it has one slash, no folder here is called ORG and NAME does not end like a file's. `hub`:
    what transformers' `from_pretrained` takes of revision, cache_dir, token, local_files_only and force_download.

    Raises PlaceError.
    """
    folder = find_here(name)
    return folder if folder is not None else _from_hub(str(name).removeprefix(HUB), patterns, hub)


def find_here(name: str | PathLike) -> Path | None:
    """Find it without the hub: None for a model that can only be there. Raises PlaceError."""
    text = str(name)
    if text.startswith(HUB) and not Path(text).exists():
        if not HUB_NAME.fullmatch(text.removeprefix(HUB)):
            raise PlaceError(f"{text} names no model on the hub; expected hf:ORG/NAME")
        return None
    folder = _expanded(text)
    try:
        if folder.is_dir():
            return folder
        there = folder.exists()
    except OSError as error:
        raise PlaceError(f"{text} cannot be looked at ({error.strerror}); check the path") from None
    if there:
        raise PlaceError(f"{text} is a file; name the folder that it lies in")
    if text == EMBEDDED:
        return _embedded()
    if could_be_hub_id(text):
        return None
    raise PlaceError(f"{text} does not exist; {_meant(folder, text)}")


def could_be_hub_id(name: str) -> bool:
    """Return whether a name of no folder can only be meant as a model on the hub."""
    if not HUB_ID.fullmatch(name) or name.lower().endswith(FILE_ENDINGS):
        return False
    return not Path(name).parent.exists()


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the home of an unknown user
        return Path(text)


def _embedded() -> Path:
    folder = Path(str(files(__name__.partition(".")[0]) / EMBEDDED))
    if not (folder / "config.json").is_file():
        raise PlaceError("tiny: the embedded checkpoint is not in this copy of firebolt_vl; `make tiny` trains it")
    return folder


def _meant(folder: Path, text: str) -> str:
    """Say what to do about a path that is not there."""
    try:
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    except OSError:
        beside = []
    beside += [EMBEDDED] if folder.name == text else []
    if near := difflib.get_close_matches(folder.name, beside, n=1, cutoff=0.7):
        return f"did you mean {Path(text).parent / near[0]}?"
    if HUB_NAME.fullmatch(text):
        return f"check the path, or write {HUB}{text if '/' in text else 'ORG/NAME'} for a model on the hub"
    return "check the path"


def _from_hub(name: str, patterns: tuple[str, ...], hub: dict) -> Path:
    from huggingface_hub import snapshot_download

    given = {key: hub[key] for key in HUB_ARGUMENTS if hub.get(key) is not None}
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), **given))
    except Exception as error:  # not found, gated, offline, no connection: each a class of its own
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        told = next((text for name, text in REASONS.items() if name in type(error).__name__), first)
        raise PlaceError(
            f"{name} is no folder, and the hub gives no such model ({told}); check the name and the connection"
        ) from None


__all__ = ["HUB_ARGUMENTS", "PlaceError", "could_be_hub_id", "find", "find_here"]
