"""The loops of a kernel's code, each with how often it runs in a launch.

Loops of the code and of Triton's IR are matched by the source's line of each, in their order. A loop of the IR that the
code has not was unrolled or runs once. Loops of the code that share a line are one loop of the IR, unrolled by ptxas,
and its remainder: how many turns they do at once follows from PTX, in which nothing is unrolled yet. A loop of the code
whose branch bears a line of its body is known by the loops inside it. Where a loop of the IR stands beside the one that
it lies in, that one's first turn was put before its loop. A loop whose runs are unknown, or that only the code has,
counts as if it ran once.
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
        turning: list[Turning] = []
        ours = _of_this_code(_partners(groups, known), times)
        for i, (group, copies, one) in enumerate(zip(groups, ptx.copies(groups, of_ptx), ours)):
            inside = of_ptx[i].inner if len(groups) == len(of_ptx) else ()
            left = None if one is None else one.count
            self.unknown += len(group) if left is None else 0
            for loop, at_once in zip(group, copies):
                count = times if left is None else left // at_once if at_once > 1 else left
                left = None if left is None else left % at_once
                count = count.astype(float)
                turning.append(Turning(count, self.matched(loop.body, inside, one.inner if one else (), count)))
        numbered = iter(turning)
        return tuple(next(numbered) if isinstance(item, Loop) else item for item in code)


def _partners(groups: Sequence[Sequence[Loop]], known: Sequence[Runs]) -> list[Runs | None]:
    """The loop of the IR that each group of loops of the code stands for."""
    waiting = list(_in_order(known))
    found: list[Runs | None] = [None] * len(groups)
    by_line = lambda one, group: one.place == group[0].place  # noqa: E731
    by_inside = lambda one, group: bool({inner.place for inner in one.inner} & _lines_inside(group))  # noqa: E731
    for fits in (by_line, by_inside):
        for i, group in enumerate(groups):
            if found[i] is None:
                found[i] = next((one for one in waiting if fits(one, group)), None)
                waiting = [one for one in waiting if one is not found[i]]
    return found


def _lines_inside(group: Sequence[Loop]) -> set[sass.Place | None]:
    return {item.place for loop in group for item in loop.body if isinstance(item, Loop)}


def _of_this_code(partners: Sequence[Runs | None], times: np.ndarray) -> Iterator[Runs | None]:
    """The runs of each loop in its own code: that of a first turn beside the loop, or that of the turns after it."""
    within = {id(inner): one for one in partners if one is not None for inner in _in_order(one.inner)}
    begun = [within[id(one)] for one in partners if id(one) in within]
    for one in partners:
        if one is not None and id(one) in within:
            yield _share(one, _first(within[id(one)], times))
        elif one is not None and any(one is other for other in begun):
            first = _first(one, times)
            yield _share(one, None if first is None else 1 - first)
        else:
            yield one


def _first(one: Runs, times: np.ndarray) -> np.ndarray | None:
    """The share of a loop's turns that are the first ones, of a loop that is reached so many times."""
    return None if one.count is None else np.minimum(times, one.count) / np.maximum(one.count, 1)


def _share(one: Runs, share: np.ndarray | None) -> Runs:
    count = None if one.count is None or share is None else np.round(one.count * share, 6)
    return Runs(one.place, count, tuple(_share(inner, share) for inner in one.inner))


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
