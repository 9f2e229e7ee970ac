"""Instructions of a warp's threads together: passing registers on, sums and extremes, waiting for each other."""

import numpy as np

from ..ptx import Instruction
from ..threads import WARP, Mask, Threads
from .table import Run, builds
from .transfer import of_lanes, whole_warps

REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@builds("shfl.sync.{bfly,idx,up,down}.b32")
def shuffle(instruction: Instruction, threads: Threads) -> Run:
    """Lane l gets what lane l ^ k (bfly), k (idx), l - k (up) or l + k (down) has; its own where there is none. Clamps
    that part a warp are those of a whole one."""
    target, given, other, clamp, _ = instruction.operands
    target = target.split("|")[0]
    mode = instruction.opcode.split(".")[2]
    if int(clamp, 0) != (0 if mode == "up" else WARP - 1):
        raise ValueError(f"a shuffle within parts of a warp, by {clamp}, has no meaning here")
    read, offset = threads.source(given, "b32"), threads.source(other, "b32")
    write, lane = threads.destination(target, "b32"), (threads.lane % WARP).astype(np.int64)

    def run(mask: Mask) -> None:
        whole_warps(mask, instruction)
        k = offset().astype(np.int64)
        there = {"bfly": lane ^ k, "idx": k, "up": lane - k, "down": lane + k}[mode]
        there = np.where((there >= 0) & (there < WARP), there, lane)
        write(np.take_along_axis(of_lanes(read()), of_lanes(there), axis=1).reshape(-1), mask)

    return run


@builds("redux.sync.{add,min,max}.{s32,u32}", "redux.sync.{and,or,xor}.b32", "redux.sync.{min,max}{.NaN,}.f32")
def reduce(instruction: Instruction, threads: Threads) -> Run:
    """Every lane gets the sum or the extreme over the warp."""
    target, given, _ = instruction.operands
    _, _, name, *_, kind = instruction.opcode.split(".")
    ignores_nan = kind == "f32" and ".NaN." not in instruction.opcode
    function = {"min": np.fmin, "max": np.fmax}[name] if ignores_nan else REDUCTIONS[name]
    read, write = threads.source(given, kind), threads.destination(target, kind)

    def run(mask: Mask) -> None:
        whole_warps(mask, instruction)
        of_warps = function.reduce(of_lanes(read()), axis=1)
        write(np.repeat(of_warps, WARP).astype(read().dtype), mask)

    return run


@builds("bar.warp.sync", "griddepcontrol.{launch_dependents,wait}")
def nothing(instruction: Instruction, threads: Threads) -> Run:
    """A warp's threads are in step, and the grid before has ended."""
    return lambda mask: None
