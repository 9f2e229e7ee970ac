"""The folder that a run writes: for one process at a time, and never over what no run has written."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..files.writing import lock, remove_unfinished, write_text
from .config import Config
from .config_files import to_json
from .errors import ConfigError
from .loop import HISTORY, holds_run, read_history

LOCK = ".firebolt-lock"
CONFIG = "train.json"
# Keys that change nothing of what a run computes.
FREE = ("out", "workers", "trackers", "log_every", "keep", "save_every", "max_bad_steps")
SHOWN = 3
# What a run writes, beside its configuration and its history.
WRITTEN = ("best", "checkpoints", "logs", "tower", "seed-*", "*.safetensors", "*.json", "*.jinja", "loss.png")


@contextmanager
def alone_in(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Have a folder for this process alone, made where there is none; what was made and stays empty goes again.

    Raises ConfigError where another process has it, or it cannot be written.
    """
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(f"out is {folder}, a link that leads nowhere; expected a folder")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"out is {folder}, a file; expected a folder")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        file = _locked(folder, note)
    except OSError as error:
        _remove_empty(made)
        raise ConfigError(f"out is {folder}, which cannot be written ({error.strerror}); name another folder") from None
    try:
        remove_unfinished(folder)
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()
        _remove_empty(made)


def _locked(folder: Path, note: Callable[[str], None]):
    """The lock's open file; the lock goes with the process, however it ends."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / LOCK, "a+b")  # noqa: SIM115
        try:
            if not lock(file):
                note(f"out is {folder}, whose file system has no locks; make sure that no other run writes there")
                return file
        except BlockingIOError:
            file.close()
            raise ConfigError(
                f"out is {folder}, where another run is writing; wait for it, or name another --out"
            ) from None
        # The run before may have removed it between its being opened and locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK)):
                return file
        file.close()


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def check_out(folder: Path, resume: bool) -> None:
    """Check that nothing would be overwritten, neither a run nor other files. Raises ConfigError."""
    if holds_run(folder):
        if not resume:
            raise ConfigError(
                f"out is {folder}, which holds a run; --resume goes on with it, another --out starts anew"
            )
        history = folder / HISTORY
        # Half a line is what a run that was killed in its first step leaves.
        if history.is_file() and b"\n" in history.read_bytes() and not read_history(history):
            raise ConfigError(f"out is {folder}, whose {HISTORY} is not the history of a run; name another folder")
        return
    # A run that was stopped before its first step has left its configuration.
    if (folder / CONFIG).is_file():
        return
    if found := sorted({file.name for pattern in WRITTEN for file in folder.glob(pattern)}):
        said = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        raise ConfigError(f"out is {folder}, which holds {said} of no run; name a new or an empty folder")


def read_config(folder: Path) -> dict:
    """Read the configuration of the run in a folder, {} where there is none. Raises ConfigError for another file."""
    file = folder / CONFIG
    if not file.is_file():
        return {}
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"out is {folder}, whose {CONFIG} is not the configuration of a run ({error})") from None
    if not isinstance(before, dict):
        raise ConfigError(f"out is {folder}, whose {CONFIG} is not the configuration of a run")
    return before


def keep_config(config: Config, folder: Path, resume: bool, note: Callable[[str], None]) -> None:
    """Write the configuration beside the run; tell what differs from the one that a resumed run began with."""
    file, text = folder / CONFIG, to_json(config)
    if resume and (before := read_config(folder)):
        now = json.loads(text)
        changed = [key for key in now if key not in FREE and before.get(key) != now[key]]
        for key in changed:
            note(
                f"{key} was {before.get(key)} when this run began and is {now[key]} now: it is another run from here on"
            )
    write_text(file, text)
