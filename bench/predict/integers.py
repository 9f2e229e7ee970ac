"""The integers of a kernel's IR, reckoned for many programs at once: bounds of loops, conditions, addresses.

They follow by integer arithmetic from a launch's arguments and the program's number, now and then from integers in
memory. What depends on anything else, such as a fraction in memory, is unknown.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from .ttir import Module, Operation, walk


class Unknown(Exception):
    """A value that does not follow from integers that are there."""


class Pointer(NamedTuple):
    """Addresses in a tensor."""

    tensor: torch.Tensor
    offset: np.ndarray
    """[programs or 1, ...] elements from the tensor's first."""


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
_SAME = ("arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast")


class Evaluation:
    """The values of a module, called with arguments by their names in the IR (fields of tuples as `x.strides.0`).

    Each is known once it was asked for. Values inside a loop are those of one turn: whoever goes through its turns sets
    the loop's variable, and forgets what the turn before made.
    """

    def __init__(self, module: Module, arguments: dict[str, Any], programs: np.ndarray):
        self.module, self.programs = module, programs
        self.count = programs.shape[1]
        self.definition = {name: op for op in walk(module.operations) for name in op.results}
        self.values: dict[str, Any] = {f"%{name}": _of_argument(value) for name, value in arguments.items()}

    def set_turn(self, loop: Operation, values: dict[str, Any]) -> None:
        """Begin another turn of a loop: `values` of its variable and of what it carries; None for what is unknown."""
        inside = (name for op in walk(loop.regions[0]) for name in (*op.results, *op.arguments))
        for name in (*inside, *loop.operands[:1], *loop.operands[4::2]):
            self.values.pop(name, None)
        self.values |= {name: value for name, value in values.items() if value is not None}

    def bounds(self, loop: Operation) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The first value of a loop's variable, its step, and how many turns there are, [programs] or [1] each."""
        first, last, step = (self.scalar(name) for name in loop.operands[1:4])
        return first, step, np.broadcast_to(np.maximum(0, -((first - last) // step)), (self.count,))

    def scalar(self, name: str) -> np.ndarray:
        """[programs], or [1] where all have the same."""
        value = self.value(name)
        if isinstance(value, Pointer) or value.ndim != 1:
            raise Unknown(name)
        return value

    def known(self, name: str) -> Any:
        """The value, or None where it is unknown."""
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
        if kind in ("tt.splat", "tt.broadcast"):
            shape = _shape(op.type)
            return _shaped(self.value(op.operands[0]), lambda value: _expanded(value, shape))
        if kind == "tt.expand_dims":
            axis = _attribute(text, "axis") + 1
            return _shaped(self.value(op.operands[0]), lambda value: np.expand_dims(value, axis))
        if kind == "tt.addptr":
            pointer, offset = map(self.value, op.operands)
            return Pointer(pointer.tensor, _aligned(np.add, pointer.offset, offset))
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


def _of_argument(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Pointer(value, np.zeros(1, np.int64))
    if isinstance(value, int):
        return np.array([value], np.int64)
    return None


def _aligned(function: Callable[..., np.ndarray], *values: Any) -> np.ndarray:
    if any(value is None or isinstance(value, Pointer) for value in values):
        raise Unknown("not an integer")
    return function(*values)


def _shaped(value: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    if isinstance(value, Pointer):
        return Pointer(value.tensor, change(value.offset))
    if value is None:
        raise Unknown("not an integer")
    return change(value)


def _expanded(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A view in the shape of a tile, of a tile with axes of 1 or of a number."""
    axes = value.shape[1:] or tuple(1 for _ in shape)
    return np.broadcast_to(value.reshape(-1, *axes), (len(value), *shape))


def _constant(text: str, shape: tuple[int, ...]) -> np.ndarray:
    found = re.match(r"(?:dense<)?(-?\d+|true|false)>? :", text) or re.match(r"(true|false)$", text)
    if not found:
        raise Unknown(text)
    value = {"true": 1, "false": 0}.get(found[1])
    return np.broadcast_to(np.int64(found[1]) if value is None else np.int64(value), (1, *shape))


def _shape(kind: str) -> tuple[int, ...]:
    found = re.match(r"tensor<((?:\d+x)+)", kind)
    return tuple(int(size) for size in found[1].split("x")[:-1]) if found else ()


def _attribute(text: str, name: str) -> int:
    return int(re.search(rf"\b{name} = (-?\d+)", text)[1])
