"""Asynchronous products of matrices: they read shared memory and write registers until they have been waited for."""

from typing import NamedTuple

import numpy as np

from .kinds import Array
from .memory import Access, Shared


class Pending(NamedTuple):
    group: int
    sums: dict[str, Array]
    """What registers will be, by name."""
    reads: list[Access]


class Products:
    """Those of a program that are under way."""

    def __init__(self, registers: dict[str, Array], shared: Shared):
        self.registers, self.shared = registers, shared
        self.begin()

    def begin(self) -> None:
        """Become those of another program."""
        self.group = 0
        self.pending: list[Pending] = []

    def so_far(self, register: str) -> Array:
        """The sum that a product goes on with: that of one under way, or what the register holds."""
        for product in reversed(self.pending):
            if register in product.sums:
                return product.sums[register]
        return self.registers[register].view(np.float32).copy()

    def start(self, sums: dict[str, Array], reads: list[Access]) -> None:
        """Registers hold nothing of use, and the bytes read have to stay, until the product has been waited for."""
        self.pending.append(Pending(self.group, sums, reads))
        for register in sums:
            self.registers[register].view(np.uint8).fill(0xFF)
        self._mark(reads, True)

    def commit(self) -> None:
        self.group += 1

    def wait(self, most: int) -> None:
        """Until at most so many of the last groups are under way."""
        done = [product for product in self.pending if product.group < self.group - most]
        self.pending = [product for product in self.pending if product.group >= self.group - most]
        for product in done:
            for register, values in product.sums.items():
                if not any(register in other.sums for other in self.pending):
                    self.registers[register].view(np.float32)[:] = values
            self._mark(product.reads, False)
        for product in self.pending:
            self._mark(product.reads, True)

    def _mark(self, reads: list[Access], used: bool) -> None:
        for access in reads:
            self.shared.mark_used(access, used)
