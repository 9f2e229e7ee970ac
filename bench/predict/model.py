"""The time of a launch: the slowest of its pipes, of its memory and of one program alone, and the launch itself.

What is reckoned. For each pipe the instructions of the busiest processor over the pipe's rate; the bytes of distinct
tensors over the bandwidth of memory that copies reach; the sectors that loads and stores touch over that of the L2; and
the time in which one warp, in order, gets through the program with nothing else to do in the meantime, as often as
programs follow each other on a processor.

What is left out. Pipes that delay each other; conflicts of banks; how threads share the sectors of a tile, and what a
sector costs that left the L2 before all of it was used; what the caches keep from the launch before; code that a
condition skips counts as run. So a prediction is rather too short than too long where memory is accessed badly, and too
long where conditions skip much.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...kernels.launch import Launch, tensors
from .accesses import bytes_of_sectors
from .chips import LAUNCH_US, REACHED_OF_BANDWIDTH, BytesOnly, Chip
from .compiled import Compiled
from .integers import Evaluation
from .matched import Turning, executed, match
from .recorded import distinct_bytes
from .sass import PIPE, PIPES, Instruction
from .trips import runs, sample_of_programs
from .warp import clocks_of, time_alone

MEMORY = ("memory", "l2")
MOST_WITH_ADDRESSES = 12
"""Programs whose addresses are reckoned."""
BOUNDS = (*PIPES, *MEMORY, "latency")


@dataclass(frozen=True)
class Prediction:
    """One launch."""

    kernel: str
    programs: int
    warps: int
    """Of a program."""
    resident: int | None
    """Warps that a processor has at a time. None where the kernel was not compiled, as are the two that follow."""
    registers: int | None
    """Of a thread."""
    shared: int | None
    """Bytes of a program."""
    bytes: int
    """Of distinct tensors."""
    touched: int | None
    """Bytes of the sectors that loads and stores touch, each as often as it is touched."""
    instructions: dict[str, float]
    """Of one warp by pipe, those of loops as often as they run, in the mean of programs; all of them under "issue"."""
    us: dict[str, float]
    """By what bounds it (BOUNDS)."""
    unknown: int = 0
    """Loops that nobody knows how often they run: they count as if they ran once."""

    @property
    def bound(self) -> str:
        return max(self.us, key=self.us.__getitem__)

    @property
    def total_us(self) -> float:
        return LAUNCH_US + self.us[self.bound]


def distinct_tensors(values: Iterable[Any]) -> list[Tensor]:
    """Those that lie at different places in memory."""
    return list({tensor.data_ptr(): tensor for tensor in tensors(values)}.values())


def bytes_of(launch: Launch, changed: Sequence[Tensor] = ()) -> int:
    """The bytes that a launch moves at least: each of its tensors once, and those that it `changed` twice."""
    found = distinct_tensors(launch.arguments.values())
    twice = {tensor.data_ptr() for tensor in changed}
    return sum(distinct_bytes(tensor) * (2 if tensor.data_ptr() in twice else 1) for tensor in found)


def memory_us(count: int, chip: Chip | BytesOnly) -> float:
    return 1e-6 * count / (REACHED_OF_BANDWIDTH * chip.memory_tb_per_s)


def predict_from_bytes(launch: Launch, chip: BytesOnly, changed: Sequence[Tensor] = ()) -> Prediction:
    """The lower bound that memory sets."""
    count, warps = bytes_of(launch, changed), launch.options["num_warps"]
    us = {"memory": memory_us(count, chip)}
    return Prediction(_name(launch), prod(launch.grid), warps, None, None, None, count, None, {}, us)


def predict(launch: Launch, compiled: Compiled, chip: Chip, changed: Sequence[Tensor] = ()) -> Prediction:
    """The prediction of a launch of a kernel that was compiled for the chip; `changed` are tensors read and written."""
    arguments = _by_name(launch.arguments)
    evaluation = Evaluation(compiled.module, arguments, sample_of_programs(launch.grid))
    code, unknown = match(compiled.code, compiled.loops, runs(evaluation), evaluation.count)
    spent = _spent(code, evaluation.count, chip)
    few = Evaluation(compiled.module, arguments, sample_of_programs(launch.grid, MOST_WITH_ADDRESSES))
    programs, at_once = prod(launch.grid), occupancy(compiled, chip)
    own = ceil(programs / chip.processors)  # of the busiest processor
    resident = compiled.warps * min(own, at_once)
    schedulers = min(chip.schedulers, resident) / chip.schedulers
    clocks = {}
    for pipe, of_warp in spent.clocks.items():
        # A processor has as much of each program as the others, and at least the longest one.
        of_processor = max(own * of_warp.mean(), of_warp.max()) * compiled.warps
        clocks[pipe] = of_processor if pipe == "lsu" else of_processor / schedulers
    touched = bytes_of_sectors(few) * programs
    clocks["l2"] = touched / chip.l2_bytes_per_clock
    longest = spent.clocks["issue"].max() / spent.clocks["issue"].mean()
    clocks["latency"] = time_alone(code, chip) * max(longest, own / at_once)
    us = {bound: float(value) / chip.clock_ghz / 1000 for bound, value in clocks.items()}
    return Prediction(
        kernel=_name(launch),
        programs=programs,
        warps=compiled.warps,
        resident=resident,
        registers=compiled.registers,
        shared=compiled.shared,
        bytes=bytes_of(launch, changed),
        touched=round(touched),
        instructions=spent.instructions,
        us=us | {"memory": memory_us(bytes_of(launch, changed), chip)},
        unknown=unknown,
    )


class _Spent(NamedTuple):
    """The work of one warp, in each of the programs that were looked at or in their mean."""

    clocks: dict[str, np.ndarray]
    """[programs] of a processor, by pipe."""
    instructions: dict[str, float]


def _spent(code: Sequence[Instruction | Turning], programs: int, chip: Chip) -> _Spent:
    clocks = {pipe: np.zeros(programs) for pipe in PIPES}
    instructions = dict.fromkeys(PIPES, 0.0)
    for instruction, times in executed(code, np.ones(programs)):
        clocks["issue"] += times / chip.schedulers
        instructions["issue"] += float(times.mean())
        if (pipe := PIPE.get(instruction.opcode)) is not None:
            clocks[pipe] += times * clocks_of(instruction, chip)
            instructions[pipe] += float(times.mean())
    return _Spent(clocks, instructions)


def _name(launch: Launch) -> str:
    return launch.kernel.fn.__name__


def _by_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as the IR names them: fields of tuples by their names, elements by their numbers."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, tuple):
            fields = getattr(value, "_fields", range(len(value)))
            found |= _by_name({f"{name}.{field}": inner for field, inner in zip(fields, value)})
        else:
            found[name] = value
    return found


def occupancy(compiled: Compiled, chip: Chip) -> int:
    """Programs that a processor has room for at a time: at least one, since they were compiled to be started."""
    registers = ceil(compiled.registers * 32 / 256) * 256 * compiled.warps  # a warp gets them by 256
    by_shared = chip.shared // (compiled.shared + 1024)  # of which the system takes 1 KB a program
    return max(1, min(chip.registers // registers, by_shared, chip.warps // compiled.warps, chip.programs))
