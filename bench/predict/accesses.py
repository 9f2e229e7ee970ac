"""The bytes that a kernel's loads and stores touch, sector by sector: what strided and masked tiles cost.

Memory is read and written by sectors of 32 bytes (CUDA C++ Programming Guide, Device Memory Accesses). Of each load and
store of a tile the addresses are reckoned as bounds of loops are; in a loop those of its middle turn stand for all. An
address that is unknown, such as one that was read from memory, counts as if its tile were contiguous.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from .integers import Evaluation, Pointer, Unknown
from .trips import branches
from .ttir import Operation

SECTOR = 32
_BYTES = {"i1": 1, "i8": 1, "bf16": 2, "f16": 2, "i16": 2, "f32": 4, "i32": 4, "f64": 8, "i64": 8}


def bytes_of_sectors(evaluation: Evaluation) -> float:
    """The bytes of all sectors that a program touches, in the mean; as often as it touches them anew."""
    once = np.ones(evaluation.count)
    return sum(_among(evaluation, evaluation.module.operations, once), np.zeros(evaluation.count)).mean()


def _among(evaluation: Evaluation, operations: Sequence[Operation], times: np.ndarray) -> Iterator[np.ndarray]:
    """[programs] bytes of each load and store among operations that run so often."""
    for op in operations:
        if op.kind in ("tt.load", "tt.store"):
            yield times * SECTOR * _sectors(evaluation, op)
        elif op.kind == "scf.for":
            yield from _of_loop(evaluation, op, times)
        elif op.kind == "scf.if":
            for region, taken in zip(op.regions, branches(evaluation, op)):
                yield from _among(evaluation, region, times if taken is None else times * taken)


def _of_loop(evaluation: Evaluation, op: Operation, times: np.ndarray) -> Iterator[np.ndarray]:
    carried = {name: evaluation.known(start) for name, start in zip(op.operands[4::2], op.operands[5::2])}
    try:
        first, step, turns = evaluation.bounds(op)
    except Unknown:
        evaluation.set_turn(op, {})
        turns = np.ones(1, np.int64)
    else:
        evaluation.set_turn(op, {op.operands[0]: first + turns // 2 * step, **carried})
    yield from _among(evaluation, op.regions[0], times * turns)


def _sectors(evaluation: Evaluation, op: Operation) -> np.ndarray:
    """[programs or 1] how many sectors a load or store touches."""
    count, size = _tile(op)
    try:
        pointer, mask = evaluation.value(op.operands[0]), _mask(evaluation, op)
    except Unknown:
        return np.array([-(-count * size // SECTOR)])
    if not isinstance(pointer, Pointer):
        return np.array([-(-count * size // SECTOR)])
    sectors, mask = np.broadcast_arrays(pointer.offset * size // SECTOR, mask)
    sectors, mask = sectors.reshape(len(sectors), -1), mask.reshape(len(sectors), -1)
    return np.array([len(np.unique(own[inside])) for own, inside in zip(sectors, mask)])


def _mask(evaluation: Evaluation, op: Operation) -> np.ndarray:
    masks = op.operands[1:] if op.kind == "tt.load" else op.operands[2:]
    return evaluation.value(masks[0]).astype(bool) if masks else np.ones(1, bool)


def _tile(op: Operation) -> tuple[int, int]:
    """The count of numbers of a load or store, and the bytes of one, by its type: `tensor<64x32x!tt.ptr<bf16>>`."""
    kind = op.text.rpartition(" : ")[2]
    sizes = re.match(r"tensor<((?:\d+x)+)", kind)
    count = int(np.prod([int(size) for size in sizes[1].split("x")[:-1]])) if sizes else 1
    return count, _BYTES.get(re.search(r"ptr<(\w+)", kind)[1], 4)
