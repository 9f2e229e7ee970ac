"""Checkpoints of a run on disk: whole or not there, and never trusted unless their sums are right."""

import hashlib
import json
import math
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .errors import TrainingError
from .states import States, first_unsound, load_states, not_finite, save_states

MANIFEST = "manifest.json"
# Of the manifest and of all files beside it; a manifest without a format is of checkpoints that held pickles.
FORMAT = 2


class OtherFormat(ValueError):
    """A checkpoint that another version of this package wrote."""


@dataclass(frozen=True)
class Restored:
    step: int
    notes: dict
    """What the run keeps beside its states."""


def steps_in(folder: Path) -> list[int]:
    found = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return sorted((int(name) for name in found if name.isdigit()), reverse=True)


def kept_in(folder: Path) -> str:
    """Tell what a run can be resumed from."""
    steps = steps_in(folder)
    return f"{folder / f'step-{steps[0]:08d}'} is kept" if steps else "no checkpoint was written before"


class Checkpoints:
    """Checkpoints of a job's states and of the random generators, below a folder.

    One is written to a temporary name, with the size and SHA-256 of every file, and renamed when it is complete. The
    newest `keep` stay. What is not finite is neither written nor taken.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, keep: int, states: States):
        self.folder = folder
        self.accelerator = accelerator
        self.keep = keep
        self.states = states

    def steps(self) -> list[int]:
        """The steps of the checkpoints that are there, whole or not; the newest first."""
        return steps_in(self.folder)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, notes: dict) -> None:
        """Called by every process; the files of all of them lie in one folder, which they have to share.

        Raises TrainingError where it cannot be written, or is not finite; the checkpoints before stay.
        """
        if (name := not_finite(self.states, self.accelerator)) is not None:
            raise TrainingError(
                f"after step {step} {name} is not finite; {kept_in(self.folder)}. A lower learning rate may help (lr=)"
            )
        unfinished = self.folder / f".unfinished-{step:08d}"
        try:
            self._write(unfinished, step, notes)
        except OSError as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            why = error.strerror or error
            raise TrainingError(
                f"the checkpoint of step {step} could not be written ({why}); {kept_in(self.folder)}"
            ) from None

    def _write(self, unfinished: Path, step: int, notes: dict) -> None:
        if self.accelerator.is_main_process:
            for left in self.folder.glob(".unfinished-*"):
                shutil.rmtree(left)
            unfinished.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        save_states(unfinished, self.states, self.accelerator)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            files = {str(file.relative_to(unfinished)): sums_of(file) for file in files_below(unfinished)}
            processes = self.accelerator.num_processes
            manifest = {"format": FORMAT, "step": step, "processes": processes, "notes": notes, "files": files}
            whole = {"manifest": manifest, "sum": sum_of(manifest)}
            (unfinished / MANIFEST).write_text(json.dumps(whole, indent=1), encoding="utf-8")
            for file in files_below(unfinished):
                flush(file)
            self._remove(step)
            unfinished.rename(self.path(step))
            flush(self.folder)
            for old in self.steps()[self.keep :]:
                self._remove(old)
        self.accelerator.wait_for_everyone()

    def restore(self) -> Restored | None:
        """Load the newest checkpoint that is whole and finite, with a warning for each that is not; None where there is
        none.

        Raises ValueError where it was written by another number of processes (each has random generators of its own)
        or is of another model, and where all that are there are of another format.
        """
        found = [None, None]
        if self.accelerator.is_main_process:
            found = list(self._newest())
        manifest, refused = broadcast_object_list(found)
        if refused is not None:
            raise ValueError(refused)
        if manifest is None:
            return None
        folder = self.path(manifest["step"])
        if manifest["processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"{folder} was written by {manifest['processes']} processes; expected "
                f"{self.accelerator.num_processes}, as many as there are now; start {manifest['processes']} to go on"
            )
        try:
            load_states(folder, self.states, self.accelerator)
        except ValueError as error:
            raise ValueError(
                f"{error}. Go on with the configuration that the run began with, or start anew with another --out"
            ) from None
        return Restored(manifest["step"], manifest["notes"])

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: of a run before this one, or damaged."""
        if self.accelerator.is_main_process:
            for later in self.steps():
                if later > step:
                    self._remove(later)
        self.accelerator.wait_for_everyone()

    def _newest(self) -> tuple[dict | None, str | None]:
        """The manifest of the newest checkpoint to go on from, or why there is none though some are there."""
        other = None
        for step in self.steps():
            folder = self.path(step)
            try:
                manifest = _verified(folder, step)
                if (name := first_unsound(folder)) is not None:
                    raise ValueError(f"{name} is not finite")
                return manifest, None
            except OtherFormat as error:
                other = other or f"{folder} {error}"
                warnings.warn(f"checkpoint {folder} {error}; the one before it is taken", stacklevel=2)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                warnings.warn(f"checkpoint {folder} is damaged ({error}); the one before it is taken", stacklevel=2)
        if other is not None:
            other += (
                "; no other one is there. Go on with the version of firebolt-vl that wrote it, or start anew from its "
                f"weights: another --out, with model={self.folder.parent / 'best'} (or the model that it began with)"
            )
        return None, other

    def _remove(self, step: int) -> None:
        """Remove a checkpoint; at no time is there half of one under a checkpoint's name."""
        if self.path(step).is_symlink():
            self.path(step).unlink()
        elif self.path(step).exists():
            going = self.folder / f".unfinished-{step:08d}-old"
            shutil.rmtree(going, ignore_errors=True)
            self.path(step).rename(going)
            shutil.rmtree(going)


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and in those below it, by name."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sums_of(file: Path) -> list:
    """The size of a file and its SHA-256."""
    with file.open("rb") as data:
        return [file.stat().st_size, hashlib.file_digest(data, "sha256").hexdigest()]


def _verified(folder: Path, step: int) -> dict:
    """The manifest of a checkpoint whose files are what it says. Raises ValueError, or what reading raises."""
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{MANIFEST} is missing")
    whole = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest = whole["manifest"]
    if whole["sum"] != sum_of(manifest):
        raise ValueError(f"{MANIFEST} is not what was written")
    if "format" not in manifest:
        raise OtherFormat(
            "is of an earlier version: pickles, which can run code when they are opened, and are not read"
        )
    if manifest["format"] != FORMAT:
        raise OtherFormat(f"is of another version (its format is {manifest['format']}; expected {FORMAT})")
    if manifest["step"] != step:
        raise ValueError(f"{MANIFEST} is that of step {manifest['step']}")
    _check_notes(manifest["notes"])
    for name, sums in manifest["files"].items():
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if sums_of(folder / name) != sums:
            raise ValueError(f"{name} is not what was written")
    return manifest


def _check_notes(notes: dict) -> None:
    """Check the notes of a run. Raises ValueError."""
    best, counts = notes["best"], (notes["skipped"], notes["in_a_row"])
    if best is not None and not (isinstance(best, float) and math.isfinite(best)):
        raise ValueError(f"{MANIFEST}: best is {best!r}; expected a number or nothing")
    if not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(f"{MANIFEST}: skipped and in_a_row are {counts}; expected counts")


def sum_of(manifest: dict) -> str:
    """The SHA-256 of what a manifest says."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def flush(path: Path) -> None:
    """Write a file's contents onto the disk itself, since a machine may lose power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
