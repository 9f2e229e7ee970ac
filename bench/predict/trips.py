"""How often the loops of a kernel run, for a launch: the integers that bound them, reckoned for many programs at once.

A loop of Triton's IR runs from its lower to its upper bound, which follow by integer arithmetic from the launch's
arguments and the program's number, now and then from integers in memory. Only these are reckoned: what depends on
anything else, such as a fraction in memory, is unknown, and so is then how often the loop runs.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .sass import Place
from .ttir import Module, Operation, walk

MOST_PROGRAMS = 192
MOST_TURNS = 4096
"""Of a loop whose inner loops run differently each time."""


class Unknown(Exception):
    """A value that does not follow from integers that are there."""


class Runs(NamedTuple):
    """A loop, and how often its body runs in each of the programs that were looked at."""

    place: Place | None
    count: np.ndarray | None
    """[programs], over all turns of the loops around it. None: unknown."""
    inner: tuple["Runs", ...]


class _Pointer(NamedTuple):
    tensor: torch.Tensor
    offset: np.ndarray


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Towards zero, as the machine does; by 0, which only masked lanes do, anything."""
    b = np.where(b == 0, 1, b)
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


_ARITHMETIC: dict[str, Callable[..., np.ndarray]] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": _divide,
    "arith.divui": _divide,
    "arith.remsi": lambda a, b: a - b * _divide(a, b),
    "arith.remui": lambda a, b: a - b * _divide(a, b),
    "arith.ceildivsi": lambda a, b: -_divide(-a, b),
    "arith.minsi": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.shrsi": np.right_shift,
    "arith.shrui": np.right_shift,
    "arith.shli": np.left_shift,
    "arith.select": np.where,
}
_COMPARISON = {
    "eq": np.equal,
    "ne": np.not_equal,
    **{f"{sign}lt": np.less for sign in "su"},
    **{f"{sign}le": np.less_equal for sign in "su"},
    **{f"{sign}gt": np.greater for sign in "su"},
    **{f"{sign}ge": np.greater_equal for sign in "su"},
}
_REDUCTION = {
    "arith.addi": np.sum,
    "arith.maxsi": np.max,
    "arith.minsi": np.min,
    "arith.ori": np.bitwise_or.reduce,
    "arith.andi": np.bitwise_and.reduce,
}
_SAME = ("arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast", "tt.broadcast")


def sample_of_programs(grid: Sequence[int]) -> np.ndarray:
    """The numbers of programs along x, y and z, [3, programs]: all of them, or so many evenly spread."""
    total = int(np.prod(grid))
    numbers = np.unique(np.linspace(0, total - 1, min(total, MOST_PROGRAMS)).astype(np.int64))
    x, y, _ = (*grid, 1, 1)[:3]
    return np.stack([numbers % x, numbers // x % y, numbers // (x * y)])


def runs(module: Module, arguments: dict[str, Any], programs: np.ndarray) -> tuple[Runs, ...]:
    """The loops of a kernel, called with arguments by their names in the IR (fields of tuples as `x.strides.0`)."""
    return _Evaluation(module, arguments, programs).loops(module.operations, np.ones(programs.shape[1], np.int64))


class _Evaluation:
    def __init__(self, module: Module, arguments: dict[str, Any], programs: np.ndarray):
        self.module, self.programs = module, programs
        self.definition = {name: op for op in walk(module.operations) for name in op.results}
        self.values: dict[str, Any] = {f"%{name}": _of_argument(value) for name, value in arguments.items()}

    def loops(self, operations: Sequence[Operation], active: np.ndarray) -> tuple[Runs, ...]:
        """Those among operations that run `active` times in each program."""
        found: list[Runs] = []
        for op in operations:
            if op.kind == "scf.for":
                found.append(self.loop(op, active))
            elif op.kind == "scf.if":
                for region, taken in zip(op.regions, self.branches(op)):
                    inside = None if taken is None or active is None else active * taken
                    found += self.loops(region, inside)
            elif op.kind == "scf.while":
                found.append(Runs(self.module.place(op.location), None, ()))
        return tuple(found)

    def branches(self, op: Operation) -> tuple[np.ndarray | None, np.ndarray | None]:
        try:
            taken = self.scalar(op.operands[0]).astype(bool)
        except Unknown:
            return None, None
        return taken, ~taken

    def loop(self, op: Operation, active: np.ndarray | None) -> Runs:
        variable, lower, upper, step, *carried = op.operands
        place, body = self.module.place(op.location), op.regions[0]
        try:
            first, last, step = (self.scalar(name) for name in (lower, upper, step))
        except Unknown:
            return Runs(place, None, self.loops(body, None))
        turns = np.maximum(0, -((first - last) // step))
        turns = np.broadcast_to(turns, (self.programs.shape[1],))
        count = None if active is None else turns * active
        needed = self.needed(body)
        if not needed & {variable, *carried[::2]}:
            return Runs(place, count, self.loops(body, count))
        return Runs(place, count, self.each_turn(op, turns, active, needed))

    def each_turn(
        self, op: Operation, turns: np.ndarray, active: np.ndarray | None, needed: set[str]
    ) -> tuple[Runs, ...]:
        """The loops inside one whose turns differ."""
        variable, lower, _, step, *carried = op.operands
        body, most = op.regions[0], int(turns.max())
        if active is None or most > MOST_TURNS:
            return self.loops(body, None)
        own = {variable, *carried[::2], *(name for inner in walk(body) for name in (*inner.results, *inner.arguments))}
        first, step = self.scalar(lower), self.scalar(step)
        state = {name: self.try_value(start) for name, start in zip(carried[::2], carried[1::2]) if name in needed}
        total: tuple[Runs, ...] | None = None
        for turn in range(most):
            for name in own:
                self.values.pop(name, None)
            self.values |= {variable: first + turn * step, **{k: v for k, v in state.items() if v is not None}}
            found = self.loops(body, active * (turn < turns))
            total = found if total is None else tuple(map(_added, total, found))
            after = dict(zip(carried[::2], body[-1].operands))
            state = {name: self.try_value(after[name]) for name in state}
        return self.loops(body, active * 0) if total is None else total

    def needed(self, body: Sequence[Operation]) -> set[str]:
        """The values that the loops and branches of a body depend on."""
        waiting = []
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
                if name in self.definition:
                    waiting += self.definition[name].operands
        return found

    def scalar(self, name: str) -> np.ndarray:
        """[programs], or [1] where all have the same."""
        value = self.value(name)
        if isinstance(value, _Pointer) or value.ndim != 1:
            raise Unknown(name)
        return value

    def try_value(self, name: str) -> Any:
        try:
            return self.value(name)
        except Unknown:
            return None

    def value(self, name: str) -> Any:
        """[programs or 1, ...] integers, or a pointer."""
        if name not in self.values:
            if name not in self.definition:
                raise Unknown(name)
            self.values[name] = self.compute(self.definition[name])
        return self.values[name]

    def compute(self, op: Operation) -> Any:
        kind, text = op.kind, op.text
        if kind == "arith.constant":
            return _constant(text, _shape(op.type))
        if kind == "tt.get_program_id":
            return self.programs["xyz".index(text.split()[0])]
        if kind == "tt.make_range":
            return np.arange(_attribute(text, "start"), _attribute(text, "end"))[None]
        if kind in _ARITHMETIC:
            return _aligned(_ARITHMETIC[kind], *map(self.value, op.operands))
        if kind == "arith.cmpi":
            return _aligned(_COMPARISON[text.split(",")[0]], *map(self.value, op.operands))
        if kind in _SAME:
            return self.value(op.operands[0])
        if kind == "tt.splat":
            return _shaped(self.value(op.operands[0]), lambda value: value.reshape(-1, *(1 for _ in _shape(op.type))))
        if kind == "tt.expand_dims":
            return _shaped(
                self.value(op.operands[0]), lambda value: np.expand_dims(value, _attribute(text, "axis") + 1)
            )
        if kind == "tt.addptr":
            pointer, offset = map(self.value, op.operands)
            return _Pointer(pointer.tensor, _aligned(np.add, pointer.offset, offset))
        if kind == "tt.load":
            return self.loaded(op)
        if kind == "tt.reduce":
            return self.reduced(op)
        raise Unknown(kind)

    def loaded(self, op: Operation) -> np.ndarray:
        pointer, *rest = map(self.value, op.operands)
        if pointer.tensor.is_floating_point() or pointer.tensor.is_complex():
            raise Unknown("a fraction in memory")
        count = pointer.tensor.untyped_storage().nbytes() // pointer.tensor.itemsize
        stored = pointer.tensor.detach().as_strided((count,), (1,), 0)
        at = pointer.offset + pointer.tensor.storage_offset()
        mask = rest[0].astype(bool) if rest else np.ones(1, bool)
        mask, at = np.broadcast_arrays(mask, at)
        values = stored.numpy()[np.where(mask, at, 0).clip(0, stored.numel() - 1)].astype(np.int64)
        return np.where(mask, values, rest[1] if len(rest) > 1 else 0)

    def reduced(self, op: Operation) -> np.ndarray:
        kinds = [inner.kind for inner in op.regions[0]]
        if len(kinds) != 2 or kinds[0] not in _REDUCTION:
            raise Unknown("a reduction")
        return _REDUCTION[kinds[0]](self.value(op.operands[0]), axis=_attribute(op.text, "axis") + 1)


def _added(one: Runs, other: Runs) -> Runs:
    count = None if one.count is None or other.count is None else one.count + other.count
    return Runs(one.place, count, tuple(map(_added, one.inner, other.inner)))


def _of_argument(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Pointer(value, np.zeros(1, np.int64))
    if isinstance(value, int):
        return np.array([value], np.int64)
    return None


def _aligned(function: Callable[..., np.ndarray], *values: Any) -> np.ndarray:
    if any(value is None or isinstance(value, _Pointer) for value in values):
        raise Unknown("not an integer")
    return function(*values)


def _shaped(value: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    if isinstance(value, _Pointer):
        return _Pointer(value.tensor, change(value.offset))
    if value is None:
        raise Unknown("not an integer")
    return change(value)


def _constant(text: str, shape: tuple[int, ...]) -> np.ndarray:
    found = re.match(r"(?:dense<)?(-?\d+|true|false)>? :", text) or re.match(r"(true|false)$", text)
    if not found:
        raise Unknown(text)
    value = {"true": 1, "false": 0}.get(found[1])
    return np.full((1, *(1 for _ in shape)), int(found[1]) if value is None else value, np.int64)


def _shape(kind: str) -> tuple[int, ...]:
    found = re.match(r"tensor<((?:\d+x)+)", kind)
    return tuple(int(size) for size in found[1].split("x")[:-1]) if found else ()


def _attribute(text: str, name: str) -> int:
    return int(re.search(rf"\b{name} = (-?\d+)", text)[1])
