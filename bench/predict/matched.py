"""The loops of a kernel's code, each with how often it runs in a launch.

Loops of the code and of Triton's IR are matched by the source's line of each, in their order. A loop of the IR that the
code has not was unrolled or runs once. Loops of the code that share a line are one loop of the IR, unrolled by ptxas,
and its remainder: how many turns they do at once follows from PTX, in which nothing is unrolled yet. A loop whose runs
are unknown, or that only the code has, counts as if it ran once.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from . import ptx, sass
from .sass import Instruction, Loop
from .trips import Runs


class Turning(NamedTuple):
    """A loop of the code with how often it runs in each program, all turns together."""

    count: np.ndarray
    body: tuple["Instruction | Turning", ...]


class Matched(NamedTuple):
    """A kernel's code with the runs of its loops."""

    code: tuple[Instruction | Turning, ...]
    unknown: int
    """Loops that count as if they ran once, because nobody knows better."""


def match(code: sass.Code, of_ptx: Sequence[ptx.Counted], known: Sequence[Runs], programs: int) -> Matched:
    """The code with the runs of each loop in as many programs as `known` was reckoned for."""
    matching = _Matching()
    return Matched(matching.matched(code, of_ptx, known, np.ones(programs)), matching.unknown)


class _Matching:
    def __init__(self) -> None:
        self.unknown = 0

    def matched(
        self, code: sass.Code, of_ptx: Sequence[ptx.Counted], known: Sequence[Runs], times: np.ndarray
    ) -> tuple[Instruction | Turning, ...]:
        loops = [item for item in code if isinstance(item, Loop)]
        groups = [list(group) for _, group in groupby(loops, key=lambda loop: loop.place)]
        waiting = list(_in_order(known))
        turning: list[Turning] = []
        for i, (group, copies) in enumerate(zip(groups, ptx.copies(groups, of_ptx))):
            one = next((one for one in waiting if one.place == group[0].place), None)
            if one is not None:
                waiting.remove(one)
            inside = of_ptx[i].inner if len(groups) == len(of_ptx) else ()
            left = None if one is None else one.count
            self.unknown += len(group) if left is None else 0
            for loop, at_once in zip(group, copies):
                count = times if left is None else (left // at_once).astype(float)
                left = None if left is None else left % at_once
                turning.append(Turning(count, self.matched(loop.body, inside, one.inner if one else (), count)))
        numbered = iter(turning)
        return tuple(next(numbered) if isinstance(item, Loop) else item for item in code)


def _in_order(known: Sequence[Runs]) -> Iterator[Runs]:
    for one in known:
        yield one
        yield from _in_order(one.inner)


def executed(code: Sequence[Instruction | Turning], times: np.ndarray) -> Iterator[tuple[Instruction, np.ndarray]]:
    """Each instruction, and how often it runs in each program."""
    for item in code:
        if isinstance(item, Turning):
            yield from executed(item.body, item.count)
        elif item.opcode != "NOP":
            yield item, times
