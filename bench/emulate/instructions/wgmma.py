"""Products by groups of four warps (sm_90), which take operands from shared memory and are waited for."""

import numpy as np

from ..kinds import KINDS, Array
from ..memory import SEVERAL, Access
from ..ptx import Instruction, UnknownPTX, Vector
from ..threads import WARP, Mask, Threads
from .matrix import LANES, ROWS, fragment
from .table import Run, builds
from .transfer import elements

GROUP = 4 * WARP
HEIGHT, DEPTH = 64, 16
# Bytes of a row of the swizzled tile by the mode in a descriptor's last two bits.
SWIZZLES = {1: 128, 2: 64, 3: 32}


@builds("wgmma.fence.sync.aligned")
def order_registers(instruction: Instruction, threads: Threads) -> Run:
    """Registers are written at once here."""
    return lambda mask: None


@builds("fence.proxy.async{,.shared::cta}")
def show_to_products(instruction: Instruction, threads: Threads) -> Run:
    """Let asynchronous products read what threads wrote."""
    return lambda mask: threads.shared.fence()


@builds("wgmma.commit_group.sync.aligned")
def commit_products(instruction: Instruction, threads: Threads) -> Run:
    return lambda mask: threads.products.commit()


@builds("wgmma.wait_group.sync.aligned")
def wait_for_products(instruction: Instruction, threads: Threads) -> Run:
    most = int(instruction.operands[0])
    return lambda mask: threads.products.wait(most)


WIDTHS = ",".join(str(8 * n) for n in range(1, 33))


@builds(f"wgmma.mma_async.sync.aligned.m64n{{{WIDTHS}}}k16.f32.{{bf16.bf16,f16.f16}}")
def multiply_asynchronously(instruction: Instruction, threads: Threads) -> Run:
    """D [64,N] = A [64,16] B [16,N] (+ D), for each group of four warps, 16 rows a warp. B, and A unless registers hold
    it, lie in shared memory, where descriptors say; a last flag says whether B's columns lie in rows there."""
    D, A, B, accumulate, *flags = instruction.operands
    modifiers = instruction.opcode.split(".")
    width, kind = int(modifiers[4].split("n")[1].split("k")[0]), modifiers[-1]
    signs, turned = [int(flag) for flag in flags[:2]], [bool(int(flag)) for flag in flags[2:]]
    if signs != [1, 1]:
        raise UnknownPTX("a product of negated operands has no meaning here")
    in_registers = isinstance(A, Vector)
    a = [threads.source(one, f"{kind}x2") for one in elements(A)] if in_registers else threads.source(A, "b64")
    b, adds = threads.source(B, "b64"), threads.source(accumulate, "pred")
    names = elements(D)

    def operand(descriptor: int, rows: int, of_rows: bool, reads: list[Access]) -> Array:
        address = addresses(descriptor, rows, of_rows)
        warps = np.full(address.size, SEVERAL, np.int64)
        access = threads.shared.access(address.reshape(-1), 2, warps, None, instruction)
        raw = np.zeros((address.size, 2), np.uint8)
        raw[access.threads] = threads.shared.read_unordered(access)
        reads.append(access)
        return KINDS[kind].decode(raw.view(np.uint16)[:, 0]).reshape(rows, DEPTH).astype(np.float64)

    def run(mask: Mask) -> None:
        if mask is not None:
            raise UnknownPTX(f"a part of the threads multiplies ({instruction})")
        reads: list[Access] = []
        groups = range(0, threads.count, GROUP)
        if in_registers:
            left = fragment([read() for read in a], 16, DEPTH).astype(np.float64).reshape(-1, HEIGHT, DEPTH)
        else:
            left = np.stack([operand(int(a()[first]), HEIGHT, turned[0], reads) for first in groups])
        right = np.stack([operand(int(b()[first]), width, turned[-1], reads) for first in groups])
        product = left @ right.swapaxes(1, 2)  # [groups, 64, N]
        by_lane = product.reshape(-1, 2, ROWS, width // 8, LANES, 2).transpose(3, 1, 5, 0, 2, 4)
        sums = {}
        for name, numbers in zip(names, by_lane.reshape(len(names), -1), strict=True):
            before = np.where(adds(), threads.products.so_far(name), np.float32(0))
            sums[name] = (numbers + before).astype(np.float32)
        threads.products.start(sums, reads)

    return run


def addresses(descriptor: int, rows: int, of_rows: bool) -> Array:
    """The addresses of an operand's elements [rows, 16].

    Tiles have eight rows of as many bytes as the swizzle spans; its pattern exchanges pieces of 16 bytes by the row's
    number. `of_rows`: a tile's row holds different rows of the operand instead of different columns.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = descriptor >> 62 & 3
    if mode not in SWIZZLES:
        raise UnknownPTX("an operand in shared memory that is not swizzled has no meaning here")
    span = SWIZZLES[mode]
    row, column = np.arange(rows)[:, None], np.arange(DEPTH)[None, :]
    if of_rows:
        tile, inside = np.divmod(row, span // 2)
        at = start + tile * leading + column // 8 * stride + column % 8 * span + inside * 2
    else:
        at = start + row // 8 * stride + row % 8 * span + column * 2
    return at ^ ((at >> 7 & (span // 16 - 1)) << 4)
