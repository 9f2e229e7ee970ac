"""Memory with every byte watched: what a program writes, reads and leaves, and what of it a GPU may do otherwise.

Time is counted in intervals between barriers. Two warps that touch a byte in the same interval, one of them writing,
race: the hardware may run them in either order. Two programs that touch a byte, one of them writing, race always. A
warp's threads run in step here, and what two warps write at once may be the same value.

An access of n bytes is aligned to n bytes on a GPU, so memory is seen as rows of n bytes and an access is one row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .doubts import Disturbance, Doubt
from .kinds import Array
from .ptx import Instruction

WIDEST = 32
WARPS = 64
"""Above the warps of a program, 32 at most."""
SEVERAL = WARPS - 1
"""Stands for more than one warp."""
GLOBAL_BASE = 0x7F0000000000
GAP = 256
Report = Callable[[str, Instruction], None]


class Clock:
    """Intervals between barriers, counted on from program to program; a stamp is an interval and a warp."""

    def __init__(self):
        self.interval = self.first = 1

    def begin(self) -> None:
        """A program starts."""
        self.interval += 1
        self.first = self.interval

    def barrier(self) -> None:
        self.interval += 1

    @property
    def now(self) -> int:
        """Less than every stamp of this interval."""
        return self.interval * WARPS

    @property
    def start(self) -> int:
        """Less than every stamp of this program; 0 is that of a byte which nobody touched."""
        return self.first * WARPS


class Access(NamedTuple):
    """Rows of memory that some threads touch."""

    threads: Array
    rows: Array
    size: int
    stamps: Array
    """[threads, 1]"""
    where: Instruction


class Watched:
    """Bytes, and for each of them who wrote it and who read it last."""

    def __init__(
        self,
        size: int,
        clock: Clock,
        report: Report,
        generator: np.random.Generator,
        disturbance: Disturbance | None = None,
    ):
        size = -(-size // WIDEST) * WIDEST
        self.clock, self.report, self.generator = clock, report, generator
        self.doubts: list[Doubt] = []
        self.disturbance = disturbance
        self.bytes = np.zeros(size, np.uint8)
        self.valid = np.zeros(size, bool)
        self.written = np.zeros(size, bool)
        self.writes = np.zeros(size, np.int64)
        self.reads = np.zeros(size, np.int64)

    def access(self, address: Array, size: int, warps: Array, mask: Array | None, where: Instruction) -> Access:
        """The threads whose addresses may be touched; the others are told of."""
        threads = np.arange(len(address)) if mask is None else np.flatnonzero(mask)
        at = address[threads] - self.base
        rows = at // size
        inside = (rows >= 0) & (rows < len(self.bytes) // size)
        if not inside.all() or not rows_of(self.valid, size)[rows].all():
            rows = np.where(inside, rows, 0)
            inside &= rows_of(self.valid, size)[rows].all(axis=1)
            if not inside.all():
                self.report(self.outside, where)
            threads, at, rows = threads[inside], at[inside], rows[inside]
        if (at != rows * size).any():
            self.report(f"an address is no multiple of the {size} bytes accessed", where)
        return Access(threads, rows, size, (self.clock.now + warps[threads].astype(np.int64))[:, None], where)

    def read(self, access: Access) -> Array:
        """Read the bytes, [threads of the access, size]."""
        _, rows, size, stamps, where = access
        if not rows_of(self.written, size)[rows].all():
            self.report(f"reads {self.name} that nothing wrote", where)
        before = rows_of(self.writes, size)[rows]
        raced = (before >= self.clock.now) & (before != stamps)
        if raced.any():
            problem = f"reads {self.name} that another warp wrote, with no barrier between"
            self._doubt(problem, access, raced, before % WARPS)
        self._note_readers(access)
        raw = rows_of(self.bytes, size)[rows]
        if self.disturbance is not None:
            self.disturbance.disturb(raw, places_of(access), stamps % WARPS, self.clock.interval)
        return raw

    def _doubt(self, problem: str, access: Access, raced: Array, writers: Array) -> None:
        writers = np.broadcast_to(writers, raced.shape)[raced]
        self.doubts.append(Doubt(problem, access.where, self.clock.interval, places_of(access)[raced], writers))

    def _note_readers(self, access: Access) -> None:
        reads, rows, stamps = rows_of(self.reads, access.size), access.rows, access.stamps
        before, now = reads[rows], self.clock.now
        noted = np.where((before >= now) & (before != stamps), now + SEVERAL, stamps)
        reads[rows] = noted
        missed = (reads[rows] != noted).any(axis=1)  # rows that warps read at once
        if missed.any():
            reads[rows[missed]] = now + SEVERAL

    def write(self, access: Access, raw: Array) -> None:
        """Put `raw` [threads of the access, size] there."""
        _, rows, size, stamps, where = access
        memory, writes, now = rows_of(self.bytes, size), rows_of(self.writes, size), self.clock.now
        before = writes[rows]
        raced = (before >= now) & (before != stamps)
        if raced.any() and (memory[rows] != raw)[raced].any():
            self.report(f"overwrites {self.name} that another warp wrote, with no barrier between", where)
        read = rows_of(self.reads, size)[rows]
        raced = (read >= now) & (read != stamps)
        if raced.any():
            problem = f"overwrites {self.name} that another warp read, with no barrier between"
            self._doubt(problem, access, raced, stamps % WARPS)
        memory[rows], writes[rows] = raw, stamps
        if (memory[rows] != raw).any():
            self._choose_winners(access, raw)
        rows_of(self.written, size)[rows] = True

    def _choose_winners(self, access: Access, raw: Array) -> None:
        """Let one of the threads that write to a byte at once win, at random.

        A warp's threads may differ by a rounding: the two sides of a sum that is made by exchanging registers do where
        a product is fused into it.
        """
        _, rows, size, stamps, where = access
        memory, writes = rows_of(self.bytes, size), rows_of(self.writes, size)
        if ((memory[rows] != raw) & (writes[rows] != stamps)).any():
            self.report(f"two warps write unlike values to one byte of {self.name} at once", where)
        order = self.generator.permutation(len(rows))
        memory[rows[order]], writes[rows[order]] = raw[order], stamps[order]


class Global(Watched):
    """Tensors side by side, with gaps between them that nothing may touch, for all programs of a launch."""

    base = GLOBAL_BASE
    name = "global memory"
    outside = "touches global memory outside of every tensor"

    def __init__(self, size: int, *how: Any):
        super().__init__(size, *how)
        self.read_by_several = np.zeros(len(self.bytes), bool)

    def read(self, access: Access) -> Array:
        _, rows, size, _, where = access
        start = self.clock.start
        written = rows_of(self.writes, size)[rows]
        if ((written > 0) & (written < start)).any():
            self.report("reads what another program writes", where)
        read = rows_of(self.reads, size)[rows]
        others = (read > 0) & (read < start)
        if others.any():
            rows_of(self.read_by_several, size)[rows] |= others
        return super().read(access)

    def write(self, access: Access, raw: Array) -> None:
        _, rows, size, _, where = access
        start = self.clock.start
        written, read = rows_of(self.writes, size)[rows], rows_of(self.reads, size)[rows]
        if ((written > 0) & (written < start)).any():
            self.report("writes a byte that another program writes", where)
        if ((read > 0) & (read < start)).any() or rows_of(self.read_by_several, size)[rows].any():
            self.report("writes what another program reads", where)
        super().write(access, raw)


class Shared(Watched):
    """The memory of one program, and the copies into it that are under way."""

    base = 0
    name = "shared memory"
    outside = "touches shared memory outside of what the kernel has"

    def __init__(self, size: int, *how: Any):
        super().__init__(size, *how)
        self.valid[:size] = True
        self.pending = np.zeros(len(self.bytes), bool)
        self.used = np.zeros(len(self.bytes), bool)
        self.fenced = np.zeros(len(self.bytes), bool)
        self.begin()

    def begin(self) -> None:
        """Become the memory of another program."""
        self.bytes.fill(0xFF)
        self.written.fill(False)
        self.pending.fill(False)
        self.used.fill(False)
        self.fenced.fill(True)
        self.group = 0
        self.under_way: list[tuple[int, Access]] = []

    def read(self, access: Access) -> Array:
        if rows_of(self.pending, access.size)[access.rows].any():
            self.report("reads a copy that was not waited for", access.where)
        return super().read(access)

    def write(self, access: Access, raw: Array) -> None:
        if rows_of(self.pending, access.size)[access.rows].any():
            self.report("overwrites a copy that was not waited for", access.where)
        if rows_of(self.used, access.size)[access.rows].any():
            self.report("overwrites what a product reads that was not waited for", access.where)
        rows_of(self.fenced, access.size)[access.rows] = False
        super().write(access, raw)

    def read_unordered(self, access: Access) -> Array:
        """Read for an asynchronous product, which sees what was written before a fence."""
        if not rows_of(self.fenced, access.size)[access.rows].all():
            self.report("a product reads what was written without a fence", access.where)
        return self.read(access)

    def fence(self) -> None:
        self.fenced.fill(True)

    def mark_used(self, access: Access, used: bool) -> None:
        """Say whether a product under way reads these bytes."""
        rows_of(self.used, access.size)[access.rows] = used

    def copy(self, access: Access, raw: Array) -> None:
        """Begin to write: it is done when its group has been waited for."""
        self.write(access, raw)
        rows_of(self.pending, access.size)[access.rows] = True
        self.under_way.append((self.group, access))

    def commit(self) -> None:
        """Close the group of copies begun so far."""
        self.group += 1

    def wait(self, most: int) -> None:
        """Wait until at most so many of the last groups are under way. To other warps it is as if they had been written
        now: they see them after the next barrier."""
        for group, access in self.under_way:
            if group < self.group - most:
                rows_of(self.pending, access.size)[access.rows] = False
                rows_of(self.writes, access.size)[access.rows] = access.stamps % WARPS + self.clock.now
        self.under_way = [copy for copy in self.under_way if copy[0] >= self.group - most]


def places_of(access: Access) -> Array:
    """The bytes that an access touches, [threads, size]."""
    return access.rows[:, None] * access.size + np.arange(access.size)


def rows_of(array: Array, size: int) -> Array:
    """A view [rows, size]."""
    return array.reshape(-1, size)
