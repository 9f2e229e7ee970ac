"""Products of matrices on tensor cores: products are exact here, their sum is rounded once.

The hardware adds in an order of its own and drops bits; its documentation promises no more than that about as many are
kept as float32 has.
"""

import numpy as np

from ..kinds import Array
from ..ptx import Instruction
from ..threads import WARP, Mask, Threads
from .table import Run, builds
from .transfer import whole_warps

# Rows of eight, and the four lanes beside each other that hold two numbers of one.
ROWS, LANES = 8, 4


def fragment(registers: list[Array], rows: int, columns: int) -> Array:
    """Numbers [threads, 2 or 1] of each register as matrices [warps, rows, columns]. In blocks of 8 rows, lane l holds
    row l/4 and columns (l%4) width + (0, 1); registers count blocks of rows first, then blocks of columns."""
    blocks = rows // ROWS
    width = registers[0].size // len(registers[0])
    stacked = np.stack(registers).reshape(-1, blocks, registers[0].shape[0] // WARP, ROWS, LANES, width)
    return stacked.transpose(2, 1, 3, 0, 4, 5).reshape(-1, rows, columns)


@builds(
    "mma.sync.aligned.m16n8k16.row.col.f32.{bf16.bf16,f16.f16}.f32",
    "mma.sync.aligned.m16n8k8.row.col.f32.{bf16.bf16,f16.f16,tf32.tf32}.f32",
)
def multiply_matrices(instruction: Instruction, threads: Threads) -> Run:
    """D [16,8] = A [16,K] B [K,8] + C [16,8], for each warp."""
    _, _, _, shape, *_, kind, _ = instruction.opcode.split(".")
    depth, pairs = int(shape.split("k")[1]), "f32" if kind == "tf32" else f"{kind}x2"
    D, A, B, C = ([*operand.elements] for operand in instruction.operands)
    a, b, c = ([threads.source(one, of) for one in names] for names, of in ((A, pairs), (B, pairs), (C, "f32")))
    writes = [threads.destination(one, "f32") for one in D]
    rounded = truncate_to_tf32 if kind == "tf32" else (lambda numbers: numbers)

    def run(mask: Mask) -> None:
        whole_warps(mask, instruction)
        left = fragment([rounded(read()) for read in a], 16, depth).astype(np.float64)
        right = fragment([rounded(read()) for read in b], 8, depth).astype(np.float64)  # B is held by columns
        product = left @ right.swapaxes(1, 2)  # [warps, 16, 8]
        found = product.reshape(-1, 2, ROWS, LANES, 2).transpose(1, 4, 0, 2, 3).reshape(4, -1)
        totals = [numbers + read() for numbers, read in zip(found, c, strict=True)]
        for write, total in zip(writes, totals, strict=True):
            write(total, mask)

    return run


def truncate_to_tf32(numbers: Array) -> Array:
    """10 bits behind the point: the hardware does not look at the others."""
    return (np.ascontiguousarray(numbers).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
