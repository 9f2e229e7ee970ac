"""Triton's IR as it prints itself: operations, their regions and the lines of the source that they come from.

Only what decides how often loops run is read: names of values, operands, attributes in their own words.
"""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from .sass import Place

NAME = r"%[\w.$-]+(?:#\d+)?"
_LOCATION = re.compile(r"\s*loc\((#loc\d*|.*)\)\s*$")
_DEFINITION = re.compile(r"^(#loc\d*) = loc\((.*)\)$")
_PLACE = re.compile(r'"([^"]+)":(\d+)')
_RESULTS = re.compile(r"^((?:%[\w.$-]+(?::\d+)?(?:, )?)+) = (.*)$")
_KIND = re.compile(r'^"?([a-z_]+\.[a-z_.]+)"?\s*(.*)$')


class Operation(NamedTuple):
    """One operation. Of several results `%a:2` the names are %a#0 and %a#1."""

    results: tuple[str, ...]
    kind: str
    text: str
    """All that follows the kind."""
    regions: tuple[tuple["Operation", ...], ...]
    location: str
    arguments: tuple[str, ...] = ()
    """The values that a loop's or reduction's body is given."""

    @property
    def operands(self) -> list[str]:
        return re.findall(NAME, self.text.partition(" : ")[0])

    @property
    def type(self) -> str:
        """The type of the result: it follows the last colon, or the arrow."""
        return self.text.rpartition(" : ")[2].rpartition(" to ")[2].rpartition("-> ")[2].strip()


class Module(NamedTuple):
    """The one function of a kernel's module."""

    operations: tuple[Operation, ...]
    parameters: tuple[str, ...]
    locations: dict[str, str]

    def place(self, location: str) -> Place | None:
        """The innermost source line of a location."""
        for _ in range(100):
            if found := _PLACE.search(location):
                return Place(Path(found[1]).name, int(found[2]))
            names = re.findall(r"#loc\d*", location)
            known = [name for name in names if self.locations.get(name, "unknown") != "unknown"]
            if not known:
                return None
            location = self.locations[known[0]]
        return None


def parse(text: str) -> Module:
    """The function of a module as `compiled.asm["ttir"]` has it."""
    lines = text.splitlines()
    locations = {found[1]: found[2] for line in lines if (found := _DEFINITION.match(line))}
    at = next(i for i, line in enumerate(lines) if "tt.func" in line)
    parameters = re.findall(r"(%[\w.$-]+): ", lines[at])
    operations, _ = _region(lines, at + 1)
    return Module(_with_own_names(operations, {}, count()), tuple(parameters), locations)


def _region(lines: list[str], at: int) -> tuple[tuple[Operation, ...], int]:
    """The operations from a line to that which closes the region, and this line's number."""
    found = []
    while not lines[at].lstrip().startswith("}"):
        if lines[at].strip() and not lines[at].lstrip().startswith("^"):
            operation, at = _operation(lines, at)
            found.append(operation)
        at += 1
    return tuple(found), at


def _operation(lines: list[str], at: int) -> tuple[Operation, int]:
    """The operation that begins at a line, and the number of its last line."""
    line = lines[at].strip()
    location = _LOCATION.search(line)
    line = line[: location.start()] if location else line
    results, rest = (_names(found[1]), found[2]) if (found := _RESULTS.match(line)) else ((), line)
    kind, text = found.groups() if (found := _KIND.match(rest)) else (rest, "")
    regions: list[tuple[Operation, ...]] = []
    arguments: tuple[str, ...] = ()
    while line.endswith(("{", "({")):
        if (entry := lines[at + 1].strip()).startswith("^bb0"):
            arguments = tuple(re.findall(r"(%[\w.$-]+): ", entry))
        region, at = _region(lines, at + 1)
        regions.append(region)
        line = lines[at].strip()
        location = _LOCATION.search(line)
        line = line[: location.start()] if location else line
        text += line.removeprefix("}").removesuffix("{")
    return Operation(results, kind, text, tuple(regions), location[1] if location else "", arguments), at


def _with_own_names(
    operations: tuple[Operation, ...], visible: dict[str, str], numbers: Iterator[int]
) -> tuple[Operation, ...]:
    """Operations in which each value has a name that no other has: in the text regions beside each other share some."""
    visible, found = dict(visible), []
    for op in operations:
        declared = (*op.arguments, *((op.operands[0], *op.operands[4::2]) if op.kind == "scf.for" else ()))
        inside = visible | {name: _numbered(name, numbers) for name in declared}
        regions = tuple(_with_own_names(region, inside, numbers) for region in op.regions)
        text = re.sub(NAME, lambda name, inside=inside: inside.get(name[0], name[0]), op.text)
        visible |= {name: _numbered(name, numbers) for name in op.results}
        results, arguments = tuple(visible[name] for name in op.results), tuple(inside[name] for name in op.arguments)
        found.append(op._replace(results=results, text=text, regions=regions, arguments=arguments))
    return tuple(found)


def _numbered(name: str, numbers: Iterator[int]) -> str:
    base, mark, result = name.partition("#")
    return f"{base}.{next(numbers)}{mark}{result}"


def _names(text: str) -> tuple[str, ...]:
    names = []
    for one in text.split(", "):
        name, _, count = one.partition(":")
        names += [f"{name}#{i}" for i in range(int(count))] if count else [name]
    return tuple(names)


def walk(operations: tuple[Operation, ...]) -> Iterator[Operation]:
    """Operations in the order of the text, each before those in its regions."""
    for operation in operations:
        yield operation
        for region in operation.regions:
            yield from walk(region)
