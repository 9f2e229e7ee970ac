"""The table of instructions: each opcode with all of its modifiers, so that what is not in it has no meaning here."""

import itertools
import re
from collections.abc import Callable

import numpy as np

from ..kinds import Array
from ..ptx import Instruction, UnknownPTX
from ..threads import Mask, Threads

Run = Callable[[Mask], None]
Build = Callable[[Instruction, Threads], Run]
OPCODES: dict[str, Build] = {}
DOUBLE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
"""The types of twice as many bits."""


def expand(pattern: str) -> list[str]:
    """`add.{s32,f32}` as `add.s32` and `add.f32`; `{.ftz,}` may be there or not."""
    parts = [part.split(",") for part in re.split(r"[{}]", pattern)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def builds(*patterns: str) -> Callable[[Build], Build]:
    """The function below builds what runs an instruction with one of these opcodes."""

    def enter(build: Build) -> Build:
        OPCODES.update({opcode: build for pattern in patterns for opcode in expand(pattern)})
        return build

    return enter


def computes(
    *patterns: str, operands: str | None = None, result: str | None = None, double: bool = False
) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """The function below is what an instruction computes of its operands, thread by thread.

    Types are the last in the opcode, unless said otherwise: `operands` are names that blanks part, where `*` is the
    opcode's own type, `2*` the one of twice as many bits and `1*` the one before the last; `result` is one of these.
    """

    def enter(function: Callable[..., Array]) -> Callable[..., Array]:
        for opcode in itertools.chain.from_iterable(map(expand, patterns)):
            modifiers = [modifier for modifier in opcode.split(".") if modifier != "ftz"]
            own = {"*": modifiers[-1], "1*": modifiers[-2], "2*": DOUBLE.get(modifiers[-1], "")}

            def build(instruction: Instruction, threads: Threads, own=own, opcode=opcode) -> Run:
                target, *given = instruction.operands
                kinds = [own.get(name, name) for name in (operands or "*").split()]
                kinds += [kinds[-1]] * (len(given) - len(kinds))
                named = list(zip(given, kinds, strict=True))
                sources = [threads.source(one, kind) for one, kind in named]
                views = [threads.view(one, kind) for one, kind in named]
                write = threads.destination(target, own.get(result or "*", result))
                if ".ftz" in opcode:
                    return lambda mask: write(flushed(function(*(flushed(read()) for read in sources))), mask)
                if all(view is not None for view in views):
                    return lambda mask: write(function(*views), mask)
                return lambda mask: write(function(*[read() for read in sources]), mask)

            OPCODES[opcode] = build
        return function

    return enter


def flushed(numbers: Array) -> Array:
    """Replace subnormal float32 numbers by zeros of the same sign."""
    if numbers.dtype != np.float32:
        return numbers
    return np.where(np.abs(numbers) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), numbers), numbers)


def build(instruction: Instruction, threads: Threads) -> Run:
    """Build what runs an instruction where its predicate holds. Raises UnknownPTX, naming it, if there is no
    such instruction here."""
    if instruction.opcode not in OPCODES:
        raise UnknownPTX(f"no instruction {instruction.opcode} is known ({instruction})")
    try:
        run = OPCODES[instruction.opcode](instruction, threads)
    except (UnknownPTX, KeyError, ValueError) as error:
        raise UnknownPTX(f"{error} ({instruction})") from error
    if instruction.predicate is None:
        return run
    holds = predicate(instruction, threads)

    def run_where_it_holds(mask: Mask) -> None:
        acting = holds() if mask is None else holds() & mask
        if acting.any():
            run(None if acting.all() else acting)

    return run_where_it_holds


def predicate(instruction: Instruction, threads: Threads) -> Callable[[], Array]:
    """A function that says in which threads an instruction's predicate holds."""
    bits = threads.registers[instruction.predicate]
    return (lambda: ~bits) if instruction.negated else bits.copy
