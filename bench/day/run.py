"""The day as a whole: steps in order until the time is up, each kept in a file as soon as it has found something."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from ...files.writing import write_text
from ...kernels.configurations import files_of
from .. import kernels as measuring
from ..sweep import Trial, table_of
from .page import rows_of, write_pictures, write_tables
from .steps import SCALES, Step, steps
from .worker import Worker

# For what is written at the end.
RESERVE = 8.0
FIRST = "day.json"


class OtherDay(ValueError):
    """A folder with the results of another machine, state of the code or scale, in one line."""


def described(scale: str) -> dict[str, str]:
    """Describe the machine and the code, which all results in a folder have in common."""
    return {
        "scale": scale,
        "device": measuring.device_name(SCALES[scale].device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": measuring.commit(),
    }


def begin(folder: Path, scale: str) -> dict[str, str]:
    """Begin a day in a folder, or go on with one. Raises OtherDay."""
    now, file = described(scale), folder / FIRST
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if different := [
            f"{name} {before.get(name)}, not {value}" for name, value in now.items() if before.get(name) != value
        ]:
            raise OtherDay(f"{folder} has results of {'; '.join(different)}; name another folder")
    else:
        write_text(file, json.dumps(now, indent=1))
    return now


def run(folder: Path, scale: str, seconds: float, tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Do the steps that `folder` has no results of, for so many seconds in all, and write its pages.

    Returns what is known of each step. A run that is broken off leaves what it had found; the next one goes on.
    """
    end = time.monotonic() + seconds - RESERVE
    about = begin(folder, scale)
    worker = Worker(scale)
    try:
        for step in steps(SCALES[scale]):
            if read_step(folder, step).get("finished"):
                tell(f"{step.name}: is there already")
            elif (left := end - time.monotonic()) < step.least:
                tell(f"{step.name}: no time is left for it")
            else:
                tell(f"{step.name}: {_do(folder, step, min(step.most, left), worker)}")
                write_tables(folder, about, _known(folder, scale))
    finally:
        worker.stop()
    known = _known(folder, scale)
    write_tables(folder, about, known)
    write_pictures(folder, known)
    _keep_configurations(folder, about, known)
    return known


def _known(folder: Path, scale: str) -> dict[str, dict[str, Any]]:
    return {step.name: read_step(folder, step) for step in steps(SCALES[scale])}


def _do(folder: Path, step: Step, seconds: float, worker: Worker) -> str:
    """Do a step and keep it; say how it went."""
    start, rows = time.monotonic(), []

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        _write_step(folder, step, rows, start, finished=False)

    problem = worker.do(step, seconds, keep)
    _write_step(folder, step, rows, start, finished=not problem, problem=problem)
    return problem or f"{len(rows)} rows in {time.monotonic() - start:.0f} s"


def _write_step(folder: Path, step: Step, rows: list, start: float, *, finished: bool, problem: str = "") -> None:
    took = round(time.monotonic() - start, 1)
    content = {"step": step.name, "kind": step.kind, "finished": finished, "problem": problem, "seconds": took}
    write_text(_file(folder, step), json.dumps(content | {"rows": rows}, indent=1))


def _file(folder: Path, step: Step) -> Path:
    return folder / "steps" / f"{step.name}.json"


def read_step(folder: Path, step: Step) -> dict[str, Any]:
    """Read what is known of a step; nothing where it was never begun."""
    try:
        return json.loads(_file(folder, step).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"step": step.name, "kind": step.kind, "finished": False, "problem": "not begun", "rows": []}


def _keep_configurations(folder: Path, about: dict[str, str], known: dict[str, dict[str, Any]]) -> None:
    """Write the table of this chip beside the results and, unless it was rehearsed, where kernels look for it."""
    trials = [Trial(**row) for row in rows_of(known, "sweep")]
    if not trials:
        return
    text = table_of(trials, about["device"], f"firebolt bench gpu-day at {about['commit']}")
    write_text(folder / "configurations.json", text)
    if about["scale"] == "full":
        write_text(files_of(about["device"])[1], text)
