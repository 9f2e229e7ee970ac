"""Costs of ops on the host: compilations as sizes vary from call to call, and the time of a call that compiles nothing.

Both are seen without a GPU, by a driver that compiles and launches nothing (`silent.py`). Left out: memory as CUDA
allocates it, the choice of a device, and the driver's own launch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import triton

from ..files.tables import markdown_table
from ..kernels import replay, use_implementation
from .cases import OPS, Case, inputs
from .compile import run_backward, run_forward
from .kernels import device_name
from .silent import silent_driver
from .timing import Run, clock_name, quantile, time_in_turns

LENGTHS = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 48, 64, 100, 112, 128, 129, 160, 200, 256, 333, 512, 777, 1024)
BATCHES = (1, 2, 3, 4, 8, 15, 16, 17, 32, 33)
GRIDS = (
    *(1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 17, 20, 24, 32, 33, 40, 48, 64, 65, 80, 100, 128, 144, 196, 256, 257, 300),
    *(400, 576, 1024),
)
# How many calls are timed at once, and for how long in all.
CALLS, SECONDS = 20, 0.5
# The share of times that are as short as the one reported: what others do on the machine only makes them longer.
QUICKEST = 0.05


@dataclass(frozen=True)
class Row:
    """An op in a dtype."""

    op: str
    dtype: str
    forward: int
    """Compilations over all sizes, without gradients."""
    both: int
    """With them, forward and backward."""
    most: str
    """The kernel that is compiled most often then."""
    of_most: int
    launches: int
    """Of a call without gradients."""
    call_us: float
    """Of such a call, where one with the same layouts was before it."""
    additions: float
    """How many times that of `torch.add` of two numbers."""
    written_us: float
    """Of a call with layouts of which only the kernels are known, so that it runs as it is written."""


def base(op: str) -> Case:
    """The size whose lengths, batch sizes and grids vary."""
    case = next(case for case in OPS[op].cases if case.quick)
    return resized(case._replace(options=()), B=2, T=128, L=128)


def resized(case: Case, **sizes: int) -> Case:
    """A case with those of `sizes` that it has; K is at most G."""
    changed = case.sizes | {name: size for name, size in sizes.items() if name in case.sizes}
    if "K" in changed:
        changed["K"] = min(changed["K"], changed["G"])
    return case._replace(sizes=changed)


def varied(op: str) -> list[Case]:
    """The sizes of a day: 25 lengths, 10 batch sizes and 31 numbers of grids, as far as the op has them."""
    case = base(op)
    found = [resized(case, T=length, L=length) for length in LENGTHS]
    if "B" in case.sizes:
        found += [resized(case, B=size) for size in BATCHES]
    if "G" in case.sizes:
        found += [resized(case, G=size) for size in GRIDS]
    return found


def compilations(op: str, dtype: str, gradients: bool) -> Counter[str]:
    """Count how often each kernel of an op is compiled while its sizes vary."""
    with silent_driver() as seen, use_implementation("triton"):
        for case in varied(op):
            _call(op, case, dtype, gradients)()
    if not seen.launches:
        raise RuntimeError(f"{op} in {dtype} has launched nothing: its kernels are not seen")
    return Counter(seen.compilations)


def _call(op: str, case: Case, dtype: str, gradients: bool) -> Callable[[], None]:
    call = inputs(op, case, dtype, fill=False)
    if gradients:
        call = OPS[op].leaves(call)
        return lambda: run_backward(call, run_forward(op, call))

    def forward() -> None:
        with torch.no_grad():
            run_forward(op, call)

    return forward


def measure(op: str, dtype: str) -> Row:
    """The row of an op."""
    forward, both = (compilations(op, dtype, gradients) for gradients in (False, True))
    most, of_most = both.most_common(1)[0]
    one = torch.ones(1)
    with silent_driver() as seen, use_implementation("triton"):
        call = _call(op, resized(base(op), B=1, T=1, L=1), dtype, gradients=False)
        call()
        launches = len(seen.launches)
        runs = {
            "call": _repeated(call),
            "written": _repeated(replay.off()(call)),
            "add": _repeated(lambda: torch.add(one, one)),
        }
        times = time_in_turns(runs, "cpu", SECONDS)
    spent = {name: quantile(ms, QUICKEST) * 1000 / CALLS for name, ms in times.items()}
    times = round(spent["call"], 2), round(spent["call"] / spent["add"], 1), round(spent["written"], 2)
    return Row(op, dtype, forward.total(), both.total(), most, of_most, launches, *times)


def _repeated(call: Callable[[], object]) -> Run:
    def often(_: object) -> None:
        for _ in range(CALLS):
            call()

    return Run(often)


COLUMNS = (
    *("op", "dtype", "forward", "with backward", "most often", "times", "launches"),
    *("us a call", "of torch.add", "us as written"),
)


def cells(row: Row) -> list[str]:
    """A row as the tables show it."""
    counts = row.forward, row.both, row.most, row.of_most, row.launches
    return [row.op, row.dtype, *map(str, counts), *(f"{x:.1f}" for x in (row.call_us, row.additions, row.written_us))]


def markdown(rows: Sequence[Row], command: str) -> str:
    """The rows as a file of docs/."""
    lines = [
        "# What the kernels cost the host",
        "",
        f"Written by `{command}`",
        f"with torch {torch.__version__} and Triton {triton.__version__} on {device_name('cpu')}, {clock_name('cpu')},",
        "a shared machine without a GPU: a driver that compiles and launches nothing stood in for one.",
        "",
        "Forward, with backward: how many compilations a process needs while an op is called with",
        f"{len(LENGTHS)} lengths up to {LENGTHS[-1]}, {len(BATCHES)} batch sizes up to {BATCHES[-1]} and {len(GRIDS)}",
        f"numbers of grids up to {GRIDS[-1]}, as far as it has them, without gradients and with them; then the kernel",
        "that is compiled most often. Launches and time are of one call without gradients, of one token, after another",
        "with the same layouts; beside it as many `torch.add` of two numbers, in turns. As written: of a call with new",
        f"layouts, whose kernels are compiled. A time is one that {QUICKEST:.0%} of its repetitions stay under. Not in",
        "it: CUDA's allocator, the choice of the device, the launch.",
        "",
        markdown_table(COLUMNS, map(cells, rows), left=2),
    ]
    return "\n".join(lines) + "\n"
