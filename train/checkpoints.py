"""Everything a run needs to go on, on disk: whole or not there, and never trusted unless its sums are right."""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Restored:
    step: int
    notes: dict
    """What the run keeps beside its states."""


class Checkpoints:
    """Checkpoints of the models, optimisers, random states and registered objects of an accelerator, below a folder.

    One is written to a temporary name, with the size and SHA-256 of every file, and renamed when it is complete. The
    newest `keep` stay.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, keep: int):
        self.folder = folder
        self.accelerator = accelerator
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, whole or not; the newest first."""
        found = (path.name.removeprefix("step-") for path in self.folder.glob("step-*"))
        return sorted((int(name) for name in found if name.isdigit()), reverse=True)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, notes: dict) -> None:
        """Called by every process; the files of all of them lie in one folder, which they have to share."""
        unfinished = self.folder / f".unfinished-{step:08d}"
        if self.accelerator.is_main_process:
            for left in self.folder.glob(".unfinished-*"):
                shutil.rmtree(left)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            files = {str(file.relative_to(unfinished)): _sums(file) for file in _files(unfinished)}
            manifest = {"step": step, "processes": self.accelerator.num_processes, "notes": notes, "files": files}
            whole = {"manifest": manifest, "sum": _sum_of(manifest)}
            (unfinished / MANIFEST).write_text(json.dumps(whole, indent=1), encoding="utf-8")
            for file in _files(unfinished):
                _flush(file)
            self._remove(step)
            unfinished.rename(self.path(step))
            _flush(self.folder)
            for old in self.steps()[self.keep :]:
                self._remove(old)
        self.accelerator.wait_for_everyone()

    def restore(self) -> Restored | None:
        """Load the newest checkpoint that is whole, with a warning for each that is not; None where there is none.

        Raises ValueError where it was written by another number of processes: each has a random state of its own.
        """
        manifest = [None]
        if self.accelerator.is_main_process:
            manifest = [self._newest()]
        [manifest] = broadcast_object_list(manifest)
        if manifest is None:
            return None
        if manifest["processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"{self.path(manifest['step'])} was written by {manifest['processes']} processes, "
                f"{self.accelerator.num_processes} came to go on with it; start as many"
            )
        self.accelerator.load_state(str(self.path(manifest["step"])))
        return Restored(manifest["step"], manifest["notes"])

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: of a run before this one, or damaged."""
        if self.accelerator.is_main_process:
            for later in self.steps():
                if later > step:
                    self._remove(later)
        self.accelerator.wait_for_everyone()

    def _newest(self) -> dict | None:
        for step in self.steps():
            try:
                return _verified(self.path(step))
            except (OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(
                    f"checkpoint {self.path(step)} is damaged ({error}); the one before it is taken", stacklevel=2
                )
        return None

    def _remove(self, step: int) -> None:
        """At no time is there half a checkpoint under a checkpoint's name."""
        if self.path(step).exists():
            going = self.folder / f".unfinished-{step:08d}-old"
            shutil.rmtree(going, ignore_errors=True)
            self.path(step).rename(going)
            shutil.rmtree(going)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sums(file: Path) -> list:
    with file.open("rb") as data:
        return [file.stat().st_size, hashlib.file_digest(data, "sha256").hexdigest()]


def _verified(folder: Path) -> dict:
    """The manifest of a checkpoint whose files are what it says. Raises ValueError, or what reading raises."""
    whole = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest = whole["manifest"]
    if whole["sum"] != _sum_of(manifest):
        raise ValueError(f"{MANIFEST} is not what was written")
    for name, sums in manifest["files"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _sums(folder / name) != sums:
            raise ValueError(f"{name} is not what was written")
    return manifest


def _sum_of(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    """Onto the disk itself: a machine may lose power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
