"""The pool of runs: each finished one is a row on disk, and what is there is not run again."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...files.writing import write_text
from ..errors import Stopped
from ..interrupts import interrupts_heard, interrupts_held
from ..results import rounded


class Settings(Protocol):
    """Settings of a run, which its row keeps."""

    def to_dict(self) -> dict: ...


Work = Callable[[str, int], dict]
"""Does the run of a variant and seed, keeps its row and returns it."""


class Pool(NamedTuple):
    """The rows of a study: files in the folder `rows` of the folder `out` that its commands are given.

    `definition` says what a variant of a name is. It stands in the variant's rows, so that rows of what the name stood
    for before count for nothing.
    """

    rows: str
    definition: Callable[[str], dict]

    def row_file(self, out: Path, variant: str, seed: int) -> Path:
        return out / self.rows / f"{variant}-seed-{seed}.json"

    def about(self, variant: str, seed: int, settings: Settings) -> dict:
        """Return what a row belongs to, as a file has it."""
        settled = {"settings": settings.to_dict(), "definition": self.definition(variant)}
        return json.loads(json.dumps({"variant": variant, "seed": seed, **settled}))

    def write_row(self, out: Path, about: dict, results: dict) -> dict:
        """Keep the results of a finished run with what they belong to; returns the row."""
        kept = json.dumps({**about, **rounded(results)}, indent=1)
        write_text(self.row_file(out, about["variant"], about["seed"]), kept + "\n")
        return {**about, **results}

    def read_row(self, out: Path, variant: str, seed: int, settings: Settings) -> dict | None:
        """The results of a finished run. None where there is none, or only one of other settings or another model."""
        try:
            row = json.loads(self.row_file(out, variant, seed).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return row if row.items() >= self.about(variant, seed, settings).items() else None

    def others(self, out: Path, settings: Settings) -> list[str]:
        """The files in the folder of the rows that are rows of other settings, or no rows at all."""
        mine = json.loads(json.dumps(settings.to_dict()))
        files = sorted((out / self.rows).glob("*-seed-*.json"))
        return [file.name for file in files if _settings_of(file) != mine]

    def missing(self, out: Path, variants: Sequence[str], seeds: int, settings: Settings) -> list[tuple[str, int]]:
        """The runs that are still to be done: seed by seed, so that what is there early is there for every variant."""
        runs = [(name, seed) for seed in range(seeds) for name in variants]
        return [run for run in runs if self.read_row(out, *run, settings) is None]


def _settings_of(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def define(variant: Any, cmm: dict, text: dict, vision: dict) -> dict:
    """Describe a variant, a dataclass: its fields but what it is called, and the configurations that it changes."""
    parts = {name: value for name, value in asdict(variant).items() if name != "says"}
    return {**parts, "cmm": {**cmm, **variant.cmm}, "text": text, "vision": vision}


def run_all(
    wanted: Sequence[tuple[str, int]], work: Work, processes: int, report: Callable[[str, int, dict], None]
) -> None:
    """Do the wanted runs in order, `processes` at a time; `report(variant, seed, row)` is told of each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as workers:
        # No more than run at once: what an executor has taken in advance would still be run after Ctrl-C.
        waiting, running = iter(wanted), {}
        while True:
            with interrupts_held():
                for name, seed in islice(waiting, processes - len(running)):
                    running[workers.submit(heard, work, name, seed)] = (name, seed)
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                report(*running.pop(done), done.result())


_stopped = False


def heard(work: Work, name: str, seed: int) -> dict:
    """`work` in a process of the pool, where Ctrl-C ends the step at hand and keeps a checkpoint.

    A process that was stopped begins no other run: the one of a process that is slow to start lies in the same queue.
    """
    global _stopped
    if _stopped:
        raise Stopped("stopped before it began")
    try:
        with interrupts_heard():
            return work(name, seed)
    except KeyboardInterrupt:
        _stopped = True
        raise
