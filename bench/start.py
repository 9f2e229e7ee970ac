"""Benchmark of a command's start: `python -m firebolt_vl.bench.start IMAGE [ROUNDS]` prints a table.

From Enter to the end, each in a new process and in turns: the help, an answer of the embedded model about an image, and
what an answer cannot do without. Seconds of the processor, all threads, do not depend on what else a machine does;
those on the clock do.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median

from ..files.tables import markdown_table

FIREBOLT = (sys.executable, "-m", "firebolt_vl")


def commands(image: str, question: str = "what digit is at the top left?") -> dict[str, tuple[str, ...]]:
    """Return the commands that are timed, by what the table calls them."""
    return {
        "python": (sys.executable, "-c", ""),
        "import torch": (sys.executable, "-c", "import torch"),
        "import transformers' models": (sys.executable, "-c", "import torch, transformers.modeling_utils"),
        "firebolt --help": (*FIREBOLT, "--help"),
        "firebolt ask": (*FIREBOLT, "ask", image, question),
    }


def measure(timed: Mapping[str, Sequence[str]], rounds: int) -> dict[str, tuple[float, float]]:
    """Medians over rounds of (seconds of the processor, seconds on the clock), after a first round that is not counted.

    Raises CalledProcessError where a command fails.
    """
    _, *counted = [{name: _seconds(command) for name, command in timed.items()} for _ in range(rounds + 1)]
    return {name: tuple(map(median, zip(*(each[name] for each in counted)))) for name in timed}


def _seconds(command: Sequence[str]) -> tuple[float, float]:
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, clock


def markdown(found: Mapping[str, tuple[float, float]]) -> str:
    """Write the table."""
    rows = [(name, f"{cpu:.2f} s", f"{clock:.2f} s") for name, (cpu, clock) in found.items()]
    return markdown_table(("", "processor", "clock"), rows)


def main(arguments: Sequence[str]) -> None:
    image, rounds = arguments[0], int(arguments[1]) if len(arguments) > 1 else 5
    print(markdown(measure(commands(image), rounds)))


if __name__ == "__main__":
    main(sys.argv[1:])
