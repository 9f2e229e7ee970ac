"""Runs the programs of a grid one after the other, the threads of each in step.

Where threads part at a branch, those that are furthest behind in the text go on until they meet the others: so the
blocks of a compiler, whose text follows its control flow, run together again as early as they can.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from .instructions import build, predicate
from .kinds import Array
from .memory import Report
from .ptx import Instruction, Program, UnknownPTX
from .threads import Mask, Threads


class Machine:
    """A program, its threads and their memory."""

    def __init__(self, program: Program, threads: Threads, report: Report):
        self.program, self.threads, self.report = program, threads, report
        self.clock = threads.shared.clock
        self.everyone = np.ones(program.threads, bool)
        self.steps = [self._step(one) for one in program.instructions]

    def run(self, grid: Sequence[int], order: Array, most: int) -> Array:
        """All programs of a grid in an order of their numbers; returns how often each instruction was executed. Raises
        UnknownPTX where they do not end before `most` are."""
        grid = (*grid, 1, 1)[:3]
        places = list(product(*(range(size) for size in grid)))
        self.left, self.executed = most, [0] * len(self.steps)
        with np.errstate(all="ignore"):
            for number in order:
                self._run_program(places[number], grid)
        return np.array(self.executed)

    def _run_program(self, place: Sequence[int], grid: Sequence[int]) -> None:
        self.clock.begin()
        self.threads.begin(place, grid)
        self.waiting: dict[int, Array] = {}
        at, mask, steps, executed, last = 0, None, self.steps, self.executed, len(self.steps)
        while at < last:
            self.left -= 1
            if self.left < 0:
                raise UnknownPTX(f"{self.program.name} does not end: it executed more than it may")
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

    def _step(self, instruction: Instruction):
        """A function of the mask that executes an instruction, and says where to go on: None for the next one, a
        number, or a number and the threads that go there."""
        kind = instruction.opcode
        if kind in ("bra", "bra.uni"):
            return self._branch(instruction)
        if kind == "ret":
            return self._end(instruction)
        if kind == "bar.sync":
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
                self.report("a barrier that not all threads reach", instruction)
            self.clock.barrier()

        return barrier
