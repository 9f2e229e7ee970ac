"""One launch of a program, run on memory; and run again where reads raced, to see whether what they give matters."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .doubts import Disturbance, Doubt
from .findings import Findings
from .kinds import Array
from .machine import Machine
from .memory import Clock, Global, Shared
from .ptx import Instruction, Program, UnknownPTX
from .threads import Threads

# A maximum may hide one number that is read in place of the true one, hardly all of them.
TRIALS = 2
# More than any kernel here executes for one launch: a loop that does not end is found.
MOST_EXECUTED = 50_000_000


class Work(NamedTuple):
    """A program, and all that it is run with."""

    program: Program
    grid: Sequence[int]
    numbers: Sequence[int | float]
    """The arguments; addresses among them."""
    size: int
    """Of global memory, in bytes."""
    fill: Callable[[Global], None]
    shared: int
    """Bytes of shared memory."""


def frozen(work: Work) -> Work:
    """The same work with memory as it is now, whatever becomes of the tensors."""
    now = Global(work.size, Clock(), lambda problem, where: None, np.random.default_rng())
    work.fill(now)

    def fill(memory: Global) -> None:
        memory.bytes[:], memory.valid[:], memory.written[:] = now.bytes, now.valid, now.written

    return work._replace(fill=fill)


class Run(NamedTuple):
    bytes: Array
    """Global memory in the end."""
    doubts: tuple[list[Doubt], list[Doubt]]
    """Of global and of shared memory."""
    executed: Array
    """How often each instruction was, counted once for all threads of a program."""


def run(work: Work, findings: Findings, generator: np.random.Generator, programs: Sequence[int] | None = None) -> Run:
    """A launch, its programs in random order; or the given ones of them alone. Reads that race are found where they
    matter."""
    seed = int(generator.integers(2**32))
    order = generator.permutation(int(np.prod(work.grid)) if programs is None else programs)
    first = _once(work, findings, order, seed)
    if any(first.doubts) and any(_matters(work, first, order, seed, trial) for trial in range(TRIALS)):
        for problem, where in {(doubt.problem, doubt.where) for doubts in first.doubts for doubt in doubts}:
            findings.add(work.program.name, problem, where)
    return first


def _matters(work: Work, first: Run, order: Array, seed: int, trial: int) -> bool:
    """Tell whether memory is another in the end if doubted reads give something else."""
    disturbances = [Disturbance(doubts, np.random.default_rng([seed, trial])) for doubts in first.doubts]
    try:
        again = _once(work, Findings(), order, seed, disturbances, 2 * int(first.executed.sum()))
    except UnknownPTX:  # an address or a count that makes no sense
        return True
    return not np.array_equal(again.bytes, first.bytes)


def _once(
    work: Work,
    findings: Findings,
    order: Array,
    seed: int,
    disturbances: Sequence[Disturbance | None] = (None, None),
    most: int = MOST_EXECUTED,
) -> Run:
    def report(problem: str, where: Instruction) -> None:
        findings.add(work.program.name, problem, where)

    clock, generator = Clock(), np.random.default_rng(seed)
    memory = Global(work.size, clock, report, generator, disturbances[0])
    shared = Shared(work.shared, clock, report, generator, disturbances[1])
    work.fill(memory)
    machine = Machine(work.program, Threads(work.program, work.numbers, memory, shared), report)
    executed = machine.run(work.grid, order, most)
    return Run(memory.bytes, (memory.doubts, shared.doubts), executed)
