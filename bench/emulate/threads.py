"""The threads of a program: their registers, one array element a thread, and how operands read and write them."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from .kinds import KINDS, Array, Kind
from .memory import Global, Shared
from .products import Products
from .ptx import Address, Operand, Program, UnknownPTX

WARP = 32
INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)U?")
# Where the compiler puts a program's shared memory; it begins at address 0 here.
SHARED_SYMBOL = "global_smem"
Mask = Array | None
"""Which threads act, [threads]; None for all of them."""
Source = Callable[[], Array]
Destination = Callable[[Array, Mask], None]


class Threads:
    """Registers of one program at a time: `begin` makes them those of the next."""

    def __init__(self, program: Program, arguments: Sequence[int | float], memory: Global, shared: Shared):
        self.count = program.threads
        self.memory, self.shared = memory, shared
        self.registers = {name: np.zeros(self.count, KINDS[kind].storage) for name, kind in program.registers.items()}
        self.products = Products(self.registers, shared)
        self.lane = np.arange(self.count, dtype=np.uint32)
        self.warp = self.lane // WARP
        self.place = {axis: np.zeros(self.count, np.uint32) for axis in "xyz"}
        self.grid = {axis: np.zeros(self.count, np.uint32) for axis in "xyz"}
        self.special = {
            "%tid.x": self.lane,
            "%laneid": self.lane % WARP,
            **{f"%ctaid.{axis}": self.place[axis] for axis in "xyz"},
            **{f"%nctaid.{axis}": self.grid[axis] for axis in "xyz"},
        }
        self.arguments = {
            name: _bits_of_argument(value, KINDS[kind])
            for (name, kind), value in zip(program.parameters.items(), arguments, strict=True)
        }

    def begin(self, place: Sequence[int], grid: Sequence[int]) -> None:
        """Become the threads of another program of the grid: registers have what a GPU would give them, anything."""
        self.shared.begin()
        self.products.begin()
        for register in self.registers.values():
            register.view(np.uint8).fill(1 if register.dtype == bool else 0xFF)
        for axis, at, size in zip("xyz", place, grid, strict=True):
            self.place[axis].fill(at)
            self.grid[axis].fill(size)

    def source(self, operand: Operand, name: str) -> Source:
        """A function that reads an operand as values of a type."""
        kind, values = KINDS[name], self.view(operand, name)
        if values is not None:
            return lambda: values
        if isinstance(operand, str) and operand.startswith("!"):
            read = self.source(operand[1:], name)
            return lambda: ~read()
        bits = self._bits(operand, kind)
        if bits.dtype == kind.storage:
            return lambda: kind.decode(bits)
        return lambda: kind.decode(bits.astype(kind.storage))

    def view(self, operand: Operand, name: str) -> Array | None:
        """The values of an operand that follow its register, where they are the same bits."""
        kind = KINDS[name]
        if not kind.plain or (isinstance(operand, str) and operand.startswith("!")):
            return None
        bits = self._bits(operand, kind)
        return kind.decode(bits) if bits.dtype == kind.storage else None

    def _bits(self, operand: Operand, kind: Kind) -> Array:
        if operand in self.registers or operand in self.special:
            found = self.registers.get(operand, self.special.get(operand))
            if found.dtype.itemsize < kind.storage.itemsize:
                raise UnknownPTX(f"{operand} is too narrow for what is read")
            return found
        return np.full(self.count, constant(operand, kind), kind.storage)

    def destination(self, operand: Operand, name: str) -> Destination:
        """A function that writes values of a type to an operand, in the threads of a mask; a wider register gets them
        with their sign."""
        if operand == "_":
            return lambda values, mask: None
        kind = KINDS[name]
        if operand not in self.registers:
            raise UnknownPTX(f"{operand} is no register")
        register = self.registers[operand]
        if register.dtype == kind.storage and kind.plain:
            numbers = register.view(kind.values)

            def write_values(values: Array, mask: Mask) -> None:
                np.copyto(numbers, values, casting="unsafe", where=True if mask is None else mask)

            return write_values
        if register.dtype == kind.storage:

            def write(values: Array, mask: Mask) -> None:
                np.copyto(register, kind.encode(values), casting="no", where=True if mask is None else mask)

            return write
        if register.dtype.itemsize < kind.storage.itemsize:
            raise UnknownPTX(f"{operand} is too narrow for what is written")

        def write_extended(values: Array, mask: Mask) -> None:
            values = values if values.dtype.kind == "i" else kind.encode(values)
            np.copyto(register, values.astype(register.dtype), where=True if mask is None else mask)

        return write_extended

    def address(self, operand: Operand) -> Source:
        """A function that gives an address in brackets as int64; the sum has as many bits as the register."""
        if not isinstance(operand, Address):
            raise UnknownPTX(f"{operand} is no address")
        if operand.base == SHARED_SYMBOL:
            fixed = np.full(self.count, operand.offset, np.int64)
            return lambda: fixed
        base = self.registers[operand.base]
        offset = np.array(operand.offset).astype(base.dtype)
        return lambda: (base + offset).astype(np.int64)


def constant(operand: Operand, kind: Kind) -> int | bool:
    """The bits of a number that stands in the text."""
    if isinstance(operand, str) and operand[:2] in ("0f", "0d"):
        return int(operand[2:], 16)
    if operand == SHARED_SYMBOL:
        return 0
    if not isinstance(operand, str) or not INTEGER.fullmatch(operand):
        raise UnknownPTX(f"{operand} is no register and no number")
    number = int(operand.rstrip("U"), 0)
    return number != 0 if kind.values.kind == "b" else number & ((1 << 8 * kind.storage.itemsize) - 1)


def _bits_of_argument(value: int | float, kind: Kind) -> int:
    if kind.values.kind == "f":
        return int(kind.values.type(value).view(kind.storage))
    return int(value) & ((1 << 8 * kind.storage.itemsize) - 1)
