"""Loads, stores and copies. Memory itself tells of what is wrong with them."""

import numpy as np

from ..kinds import KINDS, Array
from ..memory import Watched
from ..ptx import Address, Instruction, UnknownPTX, Vector
from ..threads import WARP, Mask, Threads
from .table import Run, builds

TYPES = "{b8,u8,s8,b16,u16,s16,b32,u32,s32,f32,b64,u64,s64,f64}"
VECTORS = "{.v2,.v4,.v8,}"
STATES = "{global,shared,shared::cta}"
# Hints to the caches, which change no value.
HINTS = "{.L1::evict_last,.L1::evict_first,.L1::no_allocate,}"


def elements(operand) -> tuple[str, ...]:
    return operand.elements if isinstance(operand, Vector) else (operand,)


def memory_of(instruction: Instruction, threads: Threads) -> Watched:
    return threads.memory if instruction.opcode.split(".")[1] == "global" else threads.shared


@builds("ld.param.{b32,u32,s32,f32,b64,u64,s64,f64}")
def load_parameter(instruction: Instruction, threads: Threads) -> Run:
    target, given = instruction.operands
    if not isinstance(given, Address) or given.offset or given.base not in threads.arguments:
        raise UnknownPTX(f"{given} is no parameter")
    kind = instruction.opcode.split(".")[-1]
    bits = np.full(threads.count, threads.arguments[given.base], np.uint64)
    values, write = KINDS[kind].decode(bits.astype(KINDS[kind].storage)), threads.destination(target, kind)
    return lambda mask: write(values, mask)


@builds(f"ld.{STATES}{HINTS}{VECTORS}.{TYPES}")
def load(instruction: Instruction, threads: Threads) -> Run:
    targets, given = instruction.operands
    memory, address = memory_of(instruction, threads), threads.address(given)
    kind = instruction.opcode.split(".")[-1]
    values, writes = KINDS[kind].values, [threads.destination(one, kind) for one in elements(targets)]
    size = values.itemsize * len(writes)

    def run(mask: Mask) -> None:
        access = memory.access(address(), size, threads.warp, mask, instruction)
        raw = np.zeros((threads.count, size), np.uint8)
        raw[access.threads] = memory.read(access)
        for write, numbers in zip(writes, raw.view(values).T, strict=True):
            write(numbers, mask)

    return run


@builds(f"st.{STATES}{HINTS}{VECTORS}.{TYPES}")
def store(instruction: Instruction, threads: Threads) -> Run:
    target, given = instruction.operands
    memory, address = memory_of(instruction, threads), threads.address(target)
    kind = instruction.opcode.split(".")[-1]
    reads = [threads.source(one, kind) for one in elements(given)]
    size = KINDS[kind].values.itemsize * len(reads)

    def run(mask: Mask) -> None:
        access = memory.access(address(), size, threads.warp, mask, instruction)
        raw = np.stack([read() for read in reads], axis=1).view(np.uint8)
        memory.write(access, raw[access.threads])

    return run


@builds("cp.async.{ca,cg}.shared.global")
def copy_to_shared(instruction: Instruction, threads: Threads) -> Run:
    """Begin a copy of as many of `size` bytes as the last operand says, all or none; zeros stand for the others."""
    to, given, size, *rest = instruction.operands
    into, out_of, size = threads.address(to), threads.address(given), int(size, 0)
    wanted = threads.source(rest[0] if rest else str(size), "u32")

    def run(mask: Mask) -> None:
        raw = np.zeros((threads.count, size), np.uint8)
        reading = wanted() > 0
        if mask is not None:
            reading &= mask
        if reading.any():
            if (wanted()[reading] != size).any():
                raise UnknownPTX(f"a copy of a part of the bytes has no meaning here ({instruction})")
            access = threads.memory.access(out_of(), size, threads.warp, reading, instruction)
            raw[access.threads] = threads.memory.read(access)
        access = threads.shared.access(into(), size, threads.warp, mask, instruction)
        threads.shared.copy(access, raw[access.threads])

    return run


@builds("cp.async.commit_group")
def commit_copies(instruction: Instruction, threads: Threads) -> Run:
    return lambda mask: threads.shared.commit()


@builds("cp.async.wait_group")
def wait_for_copies(instruction: Instruction, threads: Threads) -> Run:
    most = int(instruction.operands[0])
    return lambda mask: threads.shared.wait(most)


@builds("ldmatrix.sync.aligned.m8n8.{x1,x2,x4}{.trans,}.{shared,shared::cta}.b16")
def load_matrices(instruction: Instruction, threads: Threads) -> Run:
    """8x8 matrices of 16-bit numbers, whose rows the warp's lanes point at, eight lanes a matrix. Lane l gets elements
    [l/4, 2(l%4)] and [l/4, 2(l%4) + 1] of each, or of its transpose."""
    targets, given = instruction.operands
    writes, address = [threads.destination(one, "b32") for one in elements(targets)], threads.address(given)
    pointing = threads.lane % WARP < 8 * len(writes)
    transposed = ".trans." in instruction.opcode

    def run(mask: Mask) -> None:
        whole_warps(mask, instruction)
        access = threads.shared.access(address(), 16, threads.warp, pointing, instruction)
        raw = np.zeros((threads.count, 16), np.uint8)
        raw[access.threads] = threads.shared.read(access)
        matrices = raw.view(np.uint16).reshape(-1, WARP // 8, 8, 8)  # [warps, 4, 8, 8]
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        pairs = np.ascontiguousarray(matrices).view(np.uint32)  # [warps, 4, 8, 4]
        for number, write in enumerate(writes):
            write(pairs[:, number].reshape(threads.count), None)

    return run


@builds("stmatrix.sync.aligned.m8n8.{x1,x2,x4}{.trans,}.{shared,shared::cta}.b16")
def store_matrices(instruction: Instruction, threads: Threads) -> Run:
    """The reverse of `ldmatrix`."""
    target, given = instruction.operands
    reads, address = [threads.source(one, "b32") for one in elements(given)], threads.address(target)
    pointing = threads.lane % WARP < 8 * len(reads)
    transposed = ".trans." in instruction.opcode

    def run(mask: Mask) -> None:
        whole_warps(mask, instruction)
        pairs = np.zeros((threads.count // WARP, WARP // 8, 8, 4), np.uint32)
        for number, read in enumerate(reads):
            pairs[:, number] = read().reshape(-1, 8, 4)
        matrices = pairs.view(np.uint16)
        if transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        raw = matrices.reshape(threads.count, 8).view(np.uint8)
        access = threads.shared.access(address(), 16, threads.warp, pointing, instruction)
        threads.shared.write(access, raw[access.threads])

    return run


def whole_warps(mask: Mask, instruction: Instruction) -> None:
    if mask is not None and (mask.reshape(-1, WARP).any(axis=1) != mask.reshape(-1, WARP).all(axis=1)).any():
        raise UnknownPTX(f"a part of a warp executes what a warp does as one ({instruction})")


def of_lanes(numbers: Array) -> Array:
    """[threads] as [warps, lanes]."""
    return numbers.reshape(-1, WARP)
