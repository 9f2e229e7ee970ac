"""Comparisons, choices, bits, and conversions from one type to another."""

import numpy as np

from ..kinds import KINDS, Array
from ..ptx import Instruction, Vector
from ..threads import Mask, Threads
from .table import Run, builds, computes

ORDERED = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
NEGATED = {"ne": "eq", "neu": "eq", "equ": "ne", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}


def compare(name: str, a: Array, b: Array) -> Array:
    """Compare numbers. Where one of two is NaN, that is false but for comparisons that end with u."""
    if name in ("nan", "num"):
        unordered = np.isnan(a) | np.isnan(b)
        return unordered if name == "nan" else ~unordered
    if name == "ne":
        return (a != b) & ~(np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else a != b
    return ~compare(NEGATED[name], a, b) if name in NEGATED else ORDERED[name](a, b)


def _enter_comparisons() -> None:
    integers = "{b16,b32,b64,s16,s32,s64,u16,u32,u64}"
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        enter = computes(f"setp.{name}.{integers}", f"setp.{name}.{{f32,f64,f16,bf16}}", result="pred")
        enter(lambda a, b, name=name: compare(name, a, b))
    for name in ("equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"):
        enter = computes(f"setp.{name}.{{f32,f64,f16,bf16}}", result="pred")
        enter(lambda a, b, name=name: compare(name, a, b))
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        for join, function in (("and", np.logical_and), ("or", np.logical_or), ("xor", np.logical_xor)):
            enter = computes(f"setp.{name}.{join}.{integers}", operands="* * pred", result="pred")
            enter(lambda a, b, c, name=name, function=function: function(compare(name, a, b), c))


_enter_comparisons()


@computes("selp.{b16,b32,b64,s16,s32,s64,u16,u32,u64,f32,f64}", operands="* * pred")
def choose(a: Array, b: Array, condition: Array) -> Array:
    return np.where(condition, a, b)


@computes("and.{pred,b16,b32,b64}")
def both(a: Array, b: Array) -> Array:
    return a & b


@computes("or.{pred,b16,b32,b64}")
def either(a: Array, b: Array) -> Array:
    return a | b


@computes("xor.{pred,b16,b32,b64}")
def exclusive(a: Array, b: Array) -> Array:
    return a ^ b


@computes("not.{pred,b16,b32,b64}")
def inverted(a: Array) -> Array:
    return ~a


@computes("lop3.b32", operands="b32 b32 b32 u32")
def by_table(a: Array, b: Array, c: Array, table: Array) -> Array:
    """Bit by bit: the bit of the table that the three bits name."""
    found = np.zeros_like(a)
    for row in range(8):
        chosen = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        found |= np.where(table >> np.uint32(row) & np.uint32(1), chosen, np.uint32(0))
    return found


@computes("shl.{b16,b32,b64}", operands="* u32")
def shift_left(a: Array, by: Array) -> Array:
    """All bits go where the shift is as long as the type."""
    most = 8 * a.dtype.itemsize
    return np.where(by < most, a << np.minimum(by, most - 1).astype(a.dtype), a.dtype.type(0))


@computes("shr.{b16,b32,b64,u16,u32,u64,s16,s32,s64}", operands="* u32")
def shift_right(a: Array, by: Array) -> Array:
    """Signs come in from the left, or zeros."""
    most = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(by, most - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by < most, shifted, a.dtype.type(0))


@computes("shf.l.wrap.b32", operands="b32 b32 u32")
def funnel_left(low: Array, high: Array, by: Array) -> Array:
    """The upper word of two after a shift to the left by less than a word."""
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    return (both << (by & np.uint32(31)).astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


@computes("shf.r.wrap.b32", operands="b32 b32 u32")
def funnel_right(low: Array, high: Array, by: Array) -> Array:
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    return (both >> (by & np.uint32(31)).astype(np.uint64)).astype(np.uint32)


@computes("bfe.{s32,u32,s64,u64}", operands="* u32 u32")
def field(a: Array, start: Array, length: Array) -> Array:
    """`length` bits from bit `start` on, of signed types with their sign."""
    bits = np.uint32(8 * a.dtype.itemsize)
    length = np.minimum(length, bits - np.minimum(start, bits - 1))
    up = (bits - np.minimum(start, bits - 1) - length).astype(a.dtype)
    found = a << up >> (up + np.minimum(start, bits - 1).astype(a.dtype))
    return np.where(length == 0, a.dtype.type(0), found)


@computes("popc.{b32,b64}", result="u32")
def count_ones(a: Array) -> Array:
    return np.unpackbits(a.view(np.uint8).reshape(len(a), -1), axis=1).sum(axis=1, dtype=np.uint32)


@computes("prmt.b32")
def permute(a: Array, b: Array, selector: Array) -> Array:
    """Each byte of the result is one of eight, or its sign eight times."""
    given = np.stack([a, b], axis=1).view(np.uint8)
    chosen = (selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & np.uint32(15)
    found = np.take_along_axis(given, (chosen & np.uint32(7)).astype(np.intp), axis=1)
    signs = np.where(found & 0x80, np.uint8(0xFF), np.uint8(0))
    return np.where(chosen & np.uint32(8), signs, found).view(np.uint32)[:, 0]


@builds("mov.{pred,b16,u16,s16,b32,u32,s32,f32,b64,u64,s64,f64}")
def move(instruction: Instruction, threads: Threads) -> Run:
    """A copy; a vector's elements lie in the bits of one register, the first the lowest."""
    target, given = instruction.operands
    kind = instruction.opcode.split(".")[1]
    part = f"b{8 * KINDS[kind].storage.itemsize // max(1, *map(_length, (target, given)))}"
    if isinstance(target, Vector):
        read, writes = threads.source(given, kind), [threads.destination(one, part) for one in target.elements]

        def unpack(mask: Mask) -> None:
            parts = np.array(read()).view(KINDS[part].storage).reshape(threads.count, -1)
            for write, values in zip(writes, parts.T, strict=True):
                write(values, mask)

        return unpack
    write = threads.destination(target, kind)
    if isinstance(given, Vector):
        reads = [threads.source(one, part) for one in given.elements]
        return lambda mask: write(np.stack([read() for read in reads], 1).view(KINDS[kind].values)[:, 0], mask)
    read = threads.source(given, kind)
    return lambda mask: write(read(), mask)


def _length(operand) -> int:
    return len(operand.elements) if isinstance(operand, Vector) else 1


INTEGERS = "{s8,u8,s16,u16,s32,u32,s64,u64}"
FLOATS = "{f32,f64,f16,bf16}"


def _enter_conversions() -> None:
    for target in ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"):
        kind = KINDS[target].values
        computes(f"cvt.{target}.{INTEGERS}", result=target)(lambda a, kind=kind: a.astype(kind))
        for rounding, function in (("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)):
            enter = computes(f"cvt.{rounding}{{.ftz,}}.{target}.{FLOATS}", result=target)
            enter(lambda a, kind=kind, function=function: saturated(function(a), kind))
    for target in ("f32", "f64", "f16", "bf16"):
        kind = np.dtype(np.float64 if target == "f64" else np.float32)
        computes(f"cvt.rn.{target}.{INTEGERS}", result=target)(lambda a, kind=kind: a.astype(kind))
    for rounding, function in (("rzi", np.trunc), ("rni", np.rint), ("rmi", np.floor), ("rpi", np.ceil)):
        computes(f"cvt.{rounding}{{.ftz,}}.f32.f32", f"cvt.{rounding}.f64.f64")(function)


def saturated(numbers: Array, kind: np.dtype) -> Array:
    """Integers of a type, its ends for what is beyond them, 0 for NaN."""
    limits = np.iinfo(kind)
    numbers = np.nan_to_num(numbers.astype(np.float64), posinf=np.inf, neginf=-np.inf)
    inside = np.clip(numbers, float(limits.min), np.nextafter(float(limits.max), 0)).astype(kind)
    return np.where(numbers >= float(limits.max), kind.type(limits.max), inside)


_enter_conversions()


@computes("cvt.f32.{f16,bf16}", "cvt.ftz.f32.f16", result="f32")
@computes("cvt.f64.f32", result="f64")
@computes("cvt.rn.{bf16,f16}.f32", "cvt.rn.f32.f64", result="1*")
def convert(a: Array) -> Array:
    return a


@computes("cvt.rn.{bf16x2,f16x2}.f32", result="1*")
def convert_pair(high: Array, low: Array) -> Array:
    return np.stack([low, high], axis=1)
