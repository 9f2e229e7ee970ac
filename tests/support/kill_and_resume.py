"""Break training runs in many ways, resume them, and count how many end bit-equal to the unbroken one.

    python tests/support/kill_and_resume.py [--rounds 20] [--seed 0] [--recipe conversations|sft|dpo|grpo]

Small model, one thread, dropout on, a checkpoint every other step, so that some moments lie within the writing of one.
A round breaks a run in one of these ways, in turn, at a random moment or size, once or more:

    kill          SIGKILL
    interrupt     Ctrl-C, sometimes twice
    full          no file may grow beyond a size (as on a full disk)
    read-only     the folder cannot be written
    link          the folder is a link to another one; SIGKILL
    two           two runs in one folder at once: one of them alone goes on; SIGKILL
    no locks      a file system without them; SIGKILL

What is compared: the losses and perplexities of every step, which are each there once, the bytes of the final and the
best model, and the bytes of all inputs, before and after. Nothing half-written stays.
"""

import argparse
import errno
import hashlib
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

import fcntl

import matplotlib.pyplot  # noqa: F401  (once, before the processes part)
import post_trainings
import torch
import trainings
from children import in_child, status_of
from trainings import HISTORY, steps, told, weights
from transformers.utils import logging

KEYS = {
    "max_steps": 16,
    "save_every": 2,
    "eval_every": 7,
    "validation_share": 0.2,
    "train": ["vision", "connector", "decoder"],
    "warmup_steps": 3,
}
# Of the recipes by trl.
POST_KEYS = {**KEYS, "max_steps": 8, "eval_every": 3, "max_bad_share": 0.5}
NOBODY = 65534
REFUSED = 7


def keys_of(recipe: str) -> dict:
    return KEYS if recipe == "conversations" else POST_KEYS


def run(recipe: str, folder: Path, out: str, resume: bool) -> None:
    if recipe == "conversations":
        trainings.run(folder, out, resume, **keys_of(recipe))
    else:
        post_trainings.run(folder, recipe, out, resume, **keys_of(recipe))


def training(recipe: str, folder: Path, out: str, resume: bool, before: Callable[[], None] = lambda: None) -> int:
    """Train in a process of its own, which calls `before` first; returns its id."""

    def train() -> int:
        try:
            run(recipe, folder, out, resume)
        except ValueError:
            return REFUSED
        return 0

    return in_child(train, before)


def trained(recipe: str, folder: Path, out: str, resume: bool) -> None:
    if status := status_of(training(recipe, folder, out, resume)):
        raise RuntimeError(f"training in {folder / out} ended with status {status}")


class Round:
    """A folder to break a run in. `whole` is what a run takes, in seconds."""

    def __init__(self, recipe: str, folder: Path, moments: random.Random, whole: float):
        self.recipe, self.folder, self.moments, self.whole = recipe, folder, moments, whole
        self.out = folder / "broken"

    def resumes(self) -> bool:
        return (self.out / "history.jsonl").exists()

    def kill(self, before: Callable[[], None] = lambda: None) -> None:
        child = training(self.recipe, self.folder, "broken", self.resumes(), before)
        time.sleep(self.moments.uniform(0, self.whole))
        os.kill(child, signal.SIGKILL)
        status_of(child)

    def interrupt(self) -> None:
        def listen() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)

        child = training(self.recipe, self.folder, "broken", self.resumes(), listen)
        time.sleep(self.moments.uniform(0.05, self.whole))
        for _ in range(self.moments.randint(1, 2)):
            os.kill(child, signal.SIGINT)
            time.sleep(self.moments.uniform(0, 0.02))
        status_of(child)

    def full(self) -> None:
        most = int(10 ** self.moments.uniform(2, 6))
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))  # noqa: E731
        status_of(training(self.recipe, self.folder, "broken", self.resumes(), limit))

    def read_only(self) -> None:
        if self.moments.random() < 0.5:
            self.kill()
        self.out.mkdir(exist_ok=True)
        self.out.chmod(0o555)

        def become_nobody() -> None:
            if os.getuid() == 0:  # who may write everywhere
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)

        before = contents(self.out)
        if (
            status := status_of(training(self.recipe, self.folder, "broken", self.resumes(), become_nobody))
        ) != REFUSED:
            raise RuntimeError(f"training in a folder that cannot be written ended with status {status}")
        self.out.chmod(0o755)
        if contents(self.out) != before:
            raise RuntimeError("something was written into a folder that cannot be written")

    def link(self) -> None:
        (self.folder / "elsewhere").mkdir()
        self.out.symlink_to("elsewhere")
        self.kill()

    def two(self) -> None:
        children = [training(self.recipe, self.folder, "broken", False) for _ in range(2)]
        time.sleep(self.moments.uniform(0.3, 1) * self.whole)
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            status_of(child)
        if steps(self.out) != [*range(1, len(steps(self.out)) + 1)]:
            raise RuntimeError(f"two runs wrote steps {steps(self.out)}")

    def no_locks(self) -> None:
        def flock(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        self.kill(lambda: setattr(fcntl, "flock", flock))

    def clear(self) -> None:
        if self.out.is_symlink():
            self.out.unlink()
        for name in ("broken", "elsewhere"):
            if (self.folder / name).exists():
                shutil.rmtree(self.folder / name)


FAULTS = {
    "kill": Round.kill,
    "interrupt": Round.interrupt,
    "full": Round.full,
    "read-only": Round.read_only,
    "link": Round.link,
    "two": Round.two,
    "no locks": Round.no_locks,
}


def contents(folder: Path) -> dict[str, str]:
    """The files below a folder, each with its SHA-256."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def outcome(out: Path) -> dict[str, object]:
    left = [str(path.relative_to(out)) for path in out.rglob(".*") if path.name != ".firebolt-lock"]
    of_files = {f"weights in ./{part}": hashlib.sha256(weights(out / part)).hexdigest() for part in ("", "best")}
    return {"steps": steps(out), "what was told": told(out), "left behind": left, **of_files}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and sizes")
    parser.add_argument("--recipe", choices=("conversations", "sft", "dpo", "grpo"), default="conversations")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    moments = random.Random(options.seed)
    equal = 0
    with tempfile.TemporaryDirectory() as temporary:
        os.chmod(temporary, 0o755)
        writer = trainings if options.recipe == "conversations" else post_trainings
        folder = writer.write_start(Path(temporary), rows=30, dropout=0.1)
        inputs = {name: contents(folder / name) for name in ("model", "data")}
        start = time.perf_counter()
        trained(options.recipe, folder, "unbroken", resume=False)
        whole = time.perf_counter() - start
        expected = outcome(folder / "unbroken") | inputs
        assert expected["steps"] == [*range(1, keys_of(options.recipe)["max_steps"] + 1)]
        for number in range(options.rounds):
            name = [*FAULTS][number % len(FAULTS)]
            broken = Round(options.recipe, folder, moments, whole)
            FAULTS[name](broken)
            for _ in range(moments.randint(0, 1)):
                broken.kill()
            seen = len(steps(broken.out)) if (broken.out / HISTORY).is_file() else 0
            kept = sorted(path.name for path in (broken.out / "checkpoints").glob("*"))
            trained(options.recipe, folder, "broken", resume=True)
            found = outcome(broken.out) | {name: contents(folder / name) for name in inputs}
            others = [
                f"  {name}: {found[name]} and not {expected[name]}"
                for name in expected
                if found[name] != expected[name]
            ]
            equal += not others
            print(
                f"{number + 1}: {name}, broken at step {seen} ({', '.join(kept) or 'no checkpoint'}): "
                f"{'DIFFERENT' if others else 'equal'}",
                *others,
                sep="\n",
                flush=True,
            )
            broken.clear()
    print(f"{equal} of {options.rounds} resumed runs are bit-equal to the unbroken one")
    return equal < options.rounds


if __name__ == "__main__":
    sys.exit(main())
