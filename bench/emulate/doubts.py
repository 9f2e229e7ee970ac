"""Reads that race, and what becomes of a launch if they give something else.

What such a read gives may not matter: Triton lets every warp read a number that one of them then replaces, and only
that one uses it. So reads that race are noted, and the launch is run again with random bits in their place.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .kinds import Array
from .ptx import Instruction


class Doubt(NamedTuple):
    """Reads of these bytes, in this interval between barriers, by any other warp than the one that writes them."""

    problem: str
    where: Instruction
    interval: int
    bytes: Array
    writers: Array
    """The warp that writes each byte."""


class Disturbance:
    """Random bits in place of what doubted reads give."""

    def __init__(self, doubts: Sequence[Doubt], generator: np.random.Generator):
        self.generator = generator
        self.of_interval: dict[int, list[Doubt]] = {}
        for doubt in doubts:
            self.of_interval.setdefault(doubt.interval, []).append(doubt)

    def disturb(self, raw: Array, places: Array, warps: Array, interval: int) -> None:
        """Change what bytes [threads, size] at these places give warps [threads, 1]."""
        for doubt in self.of_interval.get(interval, ()):
            order = np.argsort(doubt.bytes, kind="stable")
            found = np.searchsorted(doubt.bytes, places, sorter=order)
            at = order[np.minimum(found, len(order) - 1)]
            raced = (doubt.bytes[at] == places) & (doubt.writers[at] != warps)
            raw[raced] = self.generator.integers(0, 256, np.count_nonzero(raced), np.uint8)
