"""Instructions on a processor: the clocks that each takes of its pipe, and the time of one warp that has it alone."""

from collections.abc import Sequence

from .chips import (
    ARITHMETIC_LATENCY,
    BARRIER_LATENCY,
    FUNCTION_LATENCY,
    SHARED_LATENCY,
    TENSOR_LATENCY,
    Chip,
)
from .matched import Turning
from .sass import PIPE, Instruction


def clocks_of(instruction: Instruction, chip: Chip) -> float:
    """Clocks that a processor's pipe is taken by one instruction of one warp."""
    opcode, pipe = instruction.opcode, PIPE[instruction.opcode]
    if pipe == "tensor":
        rate = chip.warpgroup_tensor if opcode == "HGMMA" else chip.tensor
        return instruction.tensor_operations() / rate
    if pipe == "lsu":
        return max(1, instruction.bytes_of_a_lane / 4) * 32 / chip.lanes
    rates = {"fma": chip.single, "alu": chip.integer, "function": chip.function, "fp64": chip.double}
    return 32 / (chip.integer if opcode == "IMAD" else rates[pipe])


def latency_of(instruction: Instruction, chip: Chip) -> int:
    """Clocks until the result is there."""
    if instruction.opcode in ("LDG", "LDL", "LDGSTS"):
        return chip.memory_latency
    if instruction.is_shared() or instruction.opcode in ("SHFL", "REDUX"):
        return SHARED_LATENCY
    if PIPE.get(instruction.opcode) == "tensor":
        return TENSOR_LATENCY
    if PIPE.get(instruction.opcode) == "function":
        return FUNCTION_LATENCY
    if PIPE.get(instruction.opcode) == "fp64":
        return int(32 / (chip.double / chip.schedulers)) + ARITHMETIC_LATENCY
    return ARITHMETIC_LATENCY


class _Warp:
    """One warp that issues its instructions in order, each as soon as what it reads is there."""

    def __init__(self, chip: Chip):
        self.chip, self.clock = chip, 0.0
        self.ready: dict[str, float] = {}
        self.copies: list[float] = []
        """When each group of asynchronous copies has arrived; of the group that is open the last."""
        self.open = self.products = 0.0

    def run(self, code: Sequence[Instruction | Turning], times: float) -> None:
        for item in code:
            if isinstance(item, Turning):
                self.turn(item, float(item.count.mean()) / times if times else 0.0)
            else:
                self.issue(item)

    def turn(self, loop: Turning, turns: float) -> None:
        """Twice, and as much time as the second turn took for each of those that are left."""
        times = float(loop.count.mean())
        start = self.clock
        if turns <= 0:
            return
        self.run(loop.body, times)
        first = self.clock
        if turns <= 1:
            self.clock = start + turns * (first - start)
            return
        self.run(loop.body, times)
        left = (turns - 2) * (self.clock - first)
        self.clock += left
        self.ready = {name: at + left for name, at in self.ready.items()}
        self.copies = [at + left for at in self.copies]

    def issue(self, instruction: Instruction) -> None:
        opcode = instruction.opcode
        start = max([self.clock + 1, *(self.ready[name] for name in instruction.read() if name in self.ready)])
        if opcode == "BAR":
            start += BARRIER_LATENCY
        elif opcode == "LDGDEPBAR":
            self.copies.append(self.open)
        elif opcode == "DEPBAR":
            allowed = int(instruction.operands.rpartition(",")[2].strip() or "0", 16)
            start = max([start, *(self.copies[:-allowed] if allowed else self.copies)])
        elif opcode == "WARPGROUP" and "DEPBAR" in instruction.modifiers:
            start = max(start, self.products)
        self.clock = start
        done = start + latency_of(instruction, self.chip)
        if opcode == "LDGSTS":
            self.open = done
        elif opcode == "HGMMA":
            self.products = max(self.products, start) + 4 * clocks_of(instruction, self.chip) + TENSOR_LATENCY
        else:
            for name in instruction.written():
                self.ready[name] = done


def time_alone(code: Sequence[Instruction | Turning], chip: Chip) -> float:
    """Clocks of one warp of a program of mean length, alone on its scheduler."""
    warp = _Warp(chip)
    warp.run(code, 1.0)
    return max([warp.clock, *warp.ready.values()])
