"""Runs a program over a grid, one after the other in random order, its threads in step.

Where threads part at a branch, those that are furthest behind in the text go on until they meet the others: so the
blocks of a compiler, whose text follows its control flow, run together again as early as they can.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from .findings import Findings
from .instructions import build, predicate
from .kinds import Array
from .memory import Global, Shared
from .ptx import Instruction, Program, UnknownPTX
from .threads import Mask, Threads

# More than any kernel here executes for one program: a loop that does not end is found.
MOST_EXECUTED = 10_000_000


class Machine:
    """A program with the memory of one launch."""

    def __init__(
        self,
        program: Program,
        arguments: Sequence[int | float],
        memory: Global,
        shared: int,
        findings: Findings,
    ):
        self.program, self.findings, self.clock = program, findings, memory.clock
        self.generator = memory.generator
        self.shared = Shared(shared, memory.clock, memory.report, memory.generator)
        self.threads = Threads(program, arguments, memory, self.shared)
        self.executed = np.zeros(len(program.instructions), np.int64)
        self.everyone = np.ones(program.threads, bool)
        self.steps = [self._step(number, one) for number, one in enumerate(program.instructions)]

    def run(self, grid: Sequence[int]) -> None:
        """All programs of a grid, in random order."""
        grid = (*grid, 1, 1)[:3]
        places = list(product(*(range(size) for size in grid)))
        with np.errstate(all="ignore"):
            for number in self.generator.permutation(len(places)):
                self._run_program(places[number], grid)

    def _run_program(self, place: Sequence[int], grid: Sequence[int]) -> None:
        self.clock.begin()
        self.shared.begin()
        self.threads.begin(place, grid)
        self.waiting: dict[int, Array] = {}
        at, mask, steps, executed, last = 0, None, self.steps, self.executed, len(self.steps)
        for _ in range(MOST_EXECUTED):
            if at == last:
                return
            executed[at] += 1
            following = steps[at](mask)
            if following is None:
                at += 1
            elif isinstance(following, int):
                at = following
            else:
                at, mask = self._part(following, at + 1, mask)
                continue
            if self.waiting:
                at, mask = self._meet({at: self.everyone if mask is None else mask})
        raise UnknownPTX(f"{self.program.name} did not end after {MOST_EXECUTED} instructions")

    def _part(self, taken: tuple[int, Array], following: int, mask: Mask) -> tuple[int, Mask]:
        """Threads that go on at two places."""
        target, jumping = taken
        others = ~jumping if mask is None else mask & ~jumping
        return self._meet({following: others} if target == following else {target: jumping, following: others})

    def _meet(self, arriving: dict[int, Array]) -> tuple[int, Mask]:
        """The place furthest behind, and the threads that are there."""
        for at, mask in arriving.items():
            self.waiting[at] = self.waiting[at] | mask if at in self.waiting else mask
        at = min(self.waiting)
        mask = self.waiting.pop(at)
        return at, None if mask.all() else mask

    def _step(self, number: int, instruction: Instruction):
        """A function of the mask that executes an instruction, and says where to go on: None for the next one, a
        number, or a number and the threads that go there."""
        kind = instruction.opcode
        if kind in ("bra", "bra.uni"):
            return self._branch(instruction)
        if kind in ("ret", "exit"):
            return self._end(instruction)
        if kind in ("bar.sync", "barrier.sync"):
            return self._barrier(instruction)
        return build(instruction, self.threads)

    def _branch(self, instruction: Instruction):
        [label] = instruction.operands
        if label not in self.program.labels:
            raise UnknownPTX(f"there is no label {label} ({instruction})")
        target = self.program.labels[label]
        if instruction.predicate is None:
            return lambda mask: target
        holds = predicate(instruction, self.threads)

        def branch(mask: Mask):
            jumping = holds() if mask is None else holds() & mask
            if not jumping.any():
                return None
            if (jumping == (self.everyone if mask is None else mask)).all():
                return target
            return target, jumping

        return branch

    def _end(self, instruction: Instruction):
        """Threads that end meet the others behind the last instruction."""
        last = len(self.program.instructions)
        if instruction.predicate is not None:
            raise UnknownPTX(f"an end of some threads has no meaning here ({instruction})")
        return lambda mask: last

    def _barrier(self, instruction: Instruction):
        if instruction.operands not in (("0",),) or instruction.predicate is not None:
            raise UnknownPTX(f"a barrier of some threads has no meaning here ({instruction})")

        def barrier(mask: Mask) -> None:
            if mask is not None:
                self.findings.add(self.program.name, "a barrier that not all threads reach", instruction)
            self.clock.barrier()

        return barrier
