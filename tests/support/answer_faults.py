"""Break `ask --batch` and `data convert` in every way that a machine has, go on, and compare with the unbroken run.

    python tests/support/answer_faults.py [--rounds 200] [--seed 0]

A round is one fault: killed at a random moment, a disk that is full (files may not grow), a folder that may not be
written, links for inputs and outputs, two writers at once, a file system without locks, outputs that are inputs. After
it the command is started again without a fault. Then no input and no file of the user's may have changed, and the rows
are those of the unbroken run, each once. Exit code 1 where one is not.
"""

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from answer_load import answered, each_once, write_questions
from children import in_child, status_of
from tiny_models import write_checkpoint

import firebolt_vl.batch  # (once, before the processes part)
import firebolt_vl.train.data.convert  # noqa: F401
from firebolt_vl import cli

QUESTIONS, NOBODY = 12, 65534
ASK = ["ask", "--batch", "questions.jsonl", "--checkpoint", "checkpoint", "--max-new-tokens", "4", "--batch-size", "2"]
CONVERT = ["data", "convert", "llava-cot", "release.jsonl"]


class Rounds:
    """Faults, by name, of one command in the folder where it runs; each returns what went wrong, or nothing."""

    def __init__(self, arguments: list[str], folder: Path, moments: random.Random, whole: bytes, seconds: float):
        self.arguments, self.folder, self.moments = arguments, folder, moments
        self.whole, self.seconds = whole, seconds
        self.out = folder / "out.jsonl"

    def run(self, out: str = "out.jsonl", before: Callable[[], None] = lambda: None) -> int:
        arguments = [*self.arguments, *(["--out"] if self.arguments is ASK else []), out]
        return in_child(lambda: cli.run(arguments), before)

    def faults(self) -> dict[str, Callable[[], str | None]]:
        named = (self.killed, self.full, self.read_only, self.linked, self.two_writers, self.no_locks, self.own_input)
        return {fault.__name__: fault for fault in named}

    def killed(self) -> None:
        child = self.run()
        time.sleep(self.moments.uniform(0, self.seconds))
        os.kill(child, signal.SIGKILL)
        status_of(child)

    def full(self) -> str | None:
        limit = self.moments.randrange(len(self.whole))
        code = status_of(self.run(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))))
        return None if code == 1 else f"exit {code} with a full disk"

    def read_only(self) -> str | None:
        self.folder.chmod(0o555)
        code = status_of(self.run(before=lambda: os.geteuid() or os.setuid(NOBODY)))
        self.folder.chmod(0o755)
        if self.out.exists():
            return "a file in a folder that may not be written"
        return None if code in (1, 2) else f"exit {code} in a folder that may not be written"

    def linked(self) -> str | None:
        self.out.symlink_to(self.folder / "behind.jsonl")
        code = status_of(self.run())
        if code or not self.out.is_symlink() or not (self.folder / "behind.jsonl").is_file():
            return f"exit {code}, {'a link' if self.out.is_symlink() else 'no link'} at the end"
        return None

    def two_writers(self) -> str | None:
        codes = sorted(status_of(child) for child in [self.run(), self.run()])
        # A conversion is whole whoever is last; answers are one writer's.
        return None if codes in ([0, 2], [0, 0]) else f"exits {codes} of two writers"

    def no_locks(self) -> str | None:
        def without() -> None:
            import fcntl

            def refuse(*_):
                raise OSError(errno.ENOLCK, "No locks available")

            fcntl.flock = refuse

        code = status_of(self.run(before=without))
        return None if code == 0 else f"exit {code} without locks"

    def own_input(self) -> str | None:
        """The output is an input, by one of its names, or a file of the user's."""
        given = self.folder / ("questions.jsonl" if self.arguments is ASK else "release.jsonl")
        kind = self.moments.randrange(4)
        name = (given.name, "again.jsonl", "hard.jsonl", "notes.txt")[kind]
        if kind == 1:
            (self.folder / name).symlink_to(given)
        if kind == 2:
            os.link(given, self.folder / name)
        code = status_of(self.run(name))
        return None if code == 2 else f"exit {code} for {name}, which is an input or a file of the user's"

    def concluded(self) -> str | None:
        """Run it again without a fault, and look at what is there."""
        if self.arguments is not ASK:
            seen = self.out.read_bytes() if self.out.exists() else None
            if seen not in (None, self.whole):
                return "half a conversion"
            self.out.unlink(missing_ok=True)
        if code := status_of(self.run()):
            return f"exit {code} of the run that went on"
        if self.arguments is ASK and not each_once(self.out, QUESTIONS):
            return "answers are missing or double"
        return None if self.out.read_bytes() == self.whole else "other rows than those of the unbroken run"


def set_up(folder: Path) -> None:
    """What the commands read, and files of the user's."""
    folder.chmod(0o755)
    write_checkpoint(folder / "checkpoint")
    write_questions(folder, QUESTIONS, seed=0)
    turns = [{"from": "human", "value": "<image>\nwhy?"}, {"from": "gpt", "value": "so"}]
    rows = [{"image": f"{number % QUESTIONS}.png", "conversations": turns, "id": number} for number in range(5_000)]
    (folder / "release.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "notes.txt").write_text("notes\n", encoding="utf-8")
    (folder / "notes.errors.jsonl").write_text("notes\n", encoding="utf-8")


def contents(folder: Path, names: set[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() if (folder / name).is_file() else b"" for name in names}


def clean(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    moments, bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        set_up(folder)
        os.chdir(folder)
        kept = {path.name for path in folder.iterdir()}
        before = contents(folder, kept)
        commands = []
        for given in (ASK, CONVERT):
            plain = Rounds(given, folder, moments, b"", 0)
            start = time.perf_counter()
            if code := status_of(plain.run()):
                raise RuntimeError(f"the unbroken run ended with status {code}")
            seconds = time.perf_counter() - start
            commands.append(Rounds(given, folder, moments, plain.out.read_bytes(), seconds))
            clean(folder, kept)
        faults = [(rounds, name) for rounds in commands for name in rounds.faults()]
        for number in range(options.rounds):
            rounds, name = faults[number % len(faults)]
            wrong = rounds.faults()[name]()
            there = answered(rounds.out)
            wrong = wrong or rounds.concluded()
            if contents(folder, kept) != before:
                wrong = "an input or a file of the user's changed"
            print(f"{number + 1}: {rounds.arguments[0]}, {name}, {there} rows then: {wrong or 'well'}", flush=True)
            bad += wrong is not None
            clean(folder, kept)
    print(f"{options.rounds - bad} of {options.rounds} rounds went well")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
