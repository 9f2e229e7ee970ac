"""Runs of the loops of a kernel, for a launch: by the integers that bound them (`integers.py`)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .integers import Evaluation, Unknown
from .sass import Place
from .ttir import Operation, walk

MOST_PROGRAMS = 192
MOST_TURNS = 4096
"""Of a loop whose inner loops run differently each time."""


class Runs(NamedTuple):
    """A loop, and how often its body runs in each of the programs that were looked at."""

    place: Place | None
    count: np.ndarray | None
    """[programs], over all turns of the loops around it. None: unknown."""
    inner: tuple["Runs", ...]


def sample_of_programs(grid: Sequence[int], most: int = MOST_PROGRAMS) -> np.ndarray:
    """The numbers of programs along x, y and z, [3, programs]: all of them, or so many evenly spread."""
    total = int(np.prod(grid))
    numbers = np.unique(np.linspace(0, total - 1, min(total, most)).astype(np.int64))
    x, y, _ = (*grid, 1, 1)[:3]
    return np.stack([numbers % x, numbers // x % y, numbers // (x * y)])


def runs(evaluation: Evaluation) -> tuple[Runs, ...]:
    """The loops of a kernel."""
    return _among(evaluation, evaluation.module.operations, np.ones(evaluation.count, np.int64))


def branches(evaluation: Evaluation, op: Operation) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The programs in which each of the two regions of a condition runs; None where it is unknown."""
    try:
        taken = evaluation.scalar(op.operands[0]).astype(bool)
    except Unknown:
        return None, None
    return taken, ~taken


def _among(evaluation: Evaluation, operations: Sequence[Operation], times: np.ndarray | None) -> tuple[Runs, ...]:
    """The loops among operations that run so often in each program."""
    found: list[Runs] = []
    for op in operations:
        if op.kind == "scf.for":
            found.append(_loop(evaluation, op, times))
        elif op.kind == "scf.if":
            for region, taken in zip(op.regions, branches(evaluation, op)):
                found += _among(evaluation, region, None if taken is None or times is None else times * taken)
        elif op.kind == "scf.while":
            found.append(Runs(evaluation.module.place(op.location), None, ()))
    return tuple(found)


def _loop(evaluation: Evaluation, op: Operation, times: np.ndarray | None) -> Runs:
    place, body = evaluation.module.place(op.location), op.regions[0]
    try:
        _, _, turns = evaluation.bounds(op)
    except Unknown:
        return Runs(place, None, _among(evaluation, body, None))
    count = None if times is None else turns * times
    needed = _needed(evaluation, body)
    if times is None or int(turns.max()) > MOST_TURNS or not needed & {op.operands[0], *op.operands[4::2]}:
        return Runs(place, count, _among(evaluation, body, count))
    return Runs(place, count, _each_turn(evaluation, op, times, needed))


def _each_turn(evaluation: Evaluation, op: Operation, times: np.ndarray, needed: set[str]) -> tuple[Runs, ...]:
    """The loops inside one whose turns differ."""
    first, step, turns = evaluation.bounds(op)
    body, carried = op.regions[0], dict(zip(op.operands[4::2], op.operands[5::2]))
    state = {name: evaluation.known(start) for name, start in carried.items() if name in needed}
    found: tuple[Runs, ...] = ()
    for turn in range(max(1, int(turns.max()))):
        evaluation.set_turn(op, {op.operands[0]: first + turn * step, **state})
        own = _among(evaluation, body, times * (turn < turns))
        found = tuple(map(_added, found, own)) if found else own
        following = dict(zip(carried, body[-1].operands))
        state = {name: evaluation.known(following[name]) for name in state}
    return found


def _needed(evaluation: Evaluation, body: Sequence[Operation]) -> set[str]:
    """The values that the loops and conditions of a body depend on."""
    waiting: list[str] = []
    for op in walk(tuple(body)):
        if op.kind == "scf.for":
            waiting += op.operands[1:4]
        elif op.kind == "scf.if":
            waiting += op.operands[:1]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += evaluation.definition[name].operands if name in evaluation.definition else []
    return found


def _added(one: Runs, other: Runs) -> Runs:
    count = None if one.count is None or other.count is None else one.count + other.count
    return Runs(one.place, count, tuple(map(_added, one.inner, other.inner)))
