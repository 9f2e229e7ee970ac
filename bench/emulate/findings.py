"""Problems that the emulator finds while a kernel runs."""

from collections import Counter
from typing import NamedTuple

from .ptx import Instruction


class Finding(NamedTuple):
    kernel: str
    problem: str
    where: str
    """The instruction, with its line of PTX and of Python."""

    def __str__(self) -> str:
        return f"{self.kernel}: {self.problem}: {self.where}"


class Findings(Counter[Finding]):
    """Findings, and how many times each was made."""

    def add(self, kernel: str, problem: str, where: Instruction) -> None:
        self[Finding(kernel, problem, str(where))] += 1
