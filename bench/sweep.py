"""Configurations around the default, tried one after the other: which is quickest, kernel by kernel."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ..kernels.configurations import Answer, Question, answering

MOST_WARPS, MOST_STAGES = 16, 5
# A measured gain below this share is as good as none.
WORTH = 0.03
Clock = Callable[[str, Answer], tuple[float, float]]
"""(mode, answer) -> microseconds by the default configurations, and by those that `answer` gives, side by side."""


@dataclass(frozen=True)
class Trial:
    """A configuration of one kernel that was tried at a size of an op."""

    op: str
    sizes: str
    mode: str
    kernel: str
    dtype: str
    size: str
    """Its size class."""
    configuration: str
    """As JSON."""
    us: float
    """Of the whole op; with `default_us` in turns."""
    default_us: float
    problem: str = ""

    @property
    def gain(self) -> float:
        """The share of the time that it saves."""
        return 0.0 if self.problem else 1 - self.us / self.default_us


def neighbours(configuration: dict[str, int]) -> list[dict[str, int]]:
    """The configurations of which one value is half or twice as large, or one stage less or more."""
    found = []
    for name, value in configuration.items():
        if name == "num_stages":
            values = [stages for stages in (value - 1, value + 1) if 1 <= stages <= MOST_STAGES]
        else:
            most = MOST_WARPS if name == "num_warps" else 1024
            values = [size for size in (value // 2, 2 * value) if 1 <= size <= most]
        found += [configuration | {name: other} for other in values]
    return found


def asked(call: Callable[[], object]) -> list[Question]:
    """The distinct questions that a call asks."""
    questions: dict[tuple[str, str, str], Question] = {}

    def default(question: Question) -> dict[str, int]:
        questions.setdefault(question[:3], question)
        return question.default

    with answering(default):
        call()
    return list(questions.values())


def replacing(kernel: str, configuration: dict[str, int], question: Question) -> dict[str, int]:
    """Answer a question about `kernel` by `configuration`, others by their defaults."""
    return configuration if question.kernel == kernel else question.default


def climb(op: str, sizes: str, mode: str, question: Question, clock: Clock) -> Iterator[Trial]:
    """Try the neighbours of the default, then those of the best so far, until none is better."""
    best, gained, tried = question.default, 0.0, [question.default]
    while True:
        start = best
        for configuration in neighbours(start):
            if configuration in tried:
                continue
            tried.append(configuration)
            trial = _tried(op, sizes, mode, question, configuration, clock)
            yield trial
            if trial.gain > max(gained, WORTH):
                best, gained = configuration, trial.gain
        if best == start:
            return


def _tried(op: str, sizes: str, mode: str, question: Question, configuration: dict[str, int], clock: Clock) -> Trial:
    us, default_us, problem = 0.0, 0.0, ""
    try:
        default_us, us = clock(mode, partial(replacing, question.kernel, configuration))
    except Exception as error:  # too much shared memory, a product that is too small, ...
        problem = f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[-1]}"
    text = json.dumps(configuration)
    return Trial(op, sizes, mode, *question[:3], text, round(us, 3), round(default_us, 3), problem)


def winners(trials: Sequence[Trial]) -> list[Trial]:
    """The best trial of each kernel, dtype and size class that is worth a line in the file of the chip."""
    best: dict[tuple[str, str, str], Trial] = {}
    for trial in trials:
        place = trial.kernel, trial.dtype, trial.size
        if trial.gain > max(WORTH, best[place].gain if place in best else 0.0):
            best[place] = trial
    return list(best.values())


def table_of(trials: Sequence[Trial], chip: str, made_by: str) -> str:
    """Write the file of a chip (`kernels/configurations.py`), with microseconds of the op before and after."""
    entries = [
        {
            "kernel": trial.kernel,
            "dtype": trial.dtype,
            "size": trial.size,
            "set": json.loads(trial.configuration),
            "us": [trial.default_us, trial.us],
        }
        for trial in winners(trials)
    ]
    lines = ",\n  ".join(json.dumps(entry) for entry in entries)
    head = f'{{"chip": {json.dumps(chip)}, "made_by": {json.dumps(made_by)}, "configurations": ['
    return f"{head}\n  {lines}\n]}}\n" if entries else f"{head}]}}\n"
