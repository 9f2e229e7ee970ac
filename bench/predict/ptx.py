"""The loops of PTX, which ptxas may unroll: how many instructions each has that the machine's code has one for one."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from . import sass

# Opcodes of PTX, by how they begin, and those of the machine: none of them is merged or doubled on the way.
_OF_PTX = ("ld.global", "st.global", "cp.async.ca", "cp.async.cg", "shfl", "bar", "mma", "wgmma.mma_async")
_OF_SASS = ("LDG", "STG", "LDGSTS", "SHFL", "BAR", "HMMA", "HGMMA")
_LABEL = re.compile(r"^(\$L\w+):")
_INSTRUCTION = re.compile(r"^\s+(?:@!?%p\d+\s+)?([a-z][\w.:]+)\s")
_BRANCH = re.compile(r"\bbra(?:\.uni)?\s+(\$L\w+)")


class Counted(NamedTuple):
    """A loop: its instructions of the kinds that count, without those of the loops inside."""

    number: int
    inner: tuple["Counted", ...]


def loops(text: str) -> tuple[Counted, ...]:
    """The loops of a kernel, as they lie within one another."""
    labels: dict[str, int] = {}
    counting: list[bool] = []
    ends: dict[int, int] = {}
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(counting)
        elif instruction := _INSTRUCTION.match(line):
            target = _BRANCH.search(line)
            if target and target[1] in labels:
                ends[labels[target[1]]] = len(counting)
            counting.append(instruction[1].startswith(_OF_PTX))
    return _nested(counting, ends, 0, len(counting))[1]


def _nested(counting: Sequence[bool], ends: dict[int, int], start: int, end: int) -> tuple[int, tuple[Counted, ...]]:
    number, inner, at = 0, [], start
    while at < end:
        last = ends.get(at)
        if last is not None and last < end:
            rest = {first: other for first, other in ends.items() if first != at}
            inner.append(Counted(*_nested(counting, rest, at, last + 1)))
            at = last + 1
        else:
            number += counting[at]
            at += 1
    return number, tuple(inner)


def number_of(loop: sass.Loop) -> int:
    """The same number as `Counted.number`, of a loop of the machine's code."""
    return sum(isinstance(item, sass.Instruction) and item.opcode in _OF_SASS for item in loop.body)


def copies(groups: Sequence[Sequence[sass.Loop]], known: Sequence[Counted]) -> Iterator[list[int]]:
    """The turns of the loop of PTX that each loop of the machine's code does at once, by groups that stand for one
    loop of PTX each; one where the two cannot be held against each other."""
    comparable = len(groups) == len(known)
    for i, group in enumerate(groups):
        number = known[i].number if comparable else 0
        yield [max(1, round(number_of(loop) / number)) if number else 1 for loop in group]
