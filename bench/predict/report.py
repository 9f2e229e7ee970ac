"""Predictions of whole ops: what is to be predicted, its kernels compiled, and the tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import triton

from ...files.tables import markdown_table
from ..cases import OPS, Case
from ..compile import Job, specialise
from .chips import H100, LAUNCH_US, BytesOnly, Chip
from .compiled import Compiled, compile_each
from .goals import GOALS, Goal
from .model import BOUNDS, Prediction, memory_us, predict, predict_from_bytes
from .recorded import Recorded, record_modes
from .sass import PIPES

MODES = ("forward", "backward")


class Subject(NamedTuple):
    """A thing to predict: an op at a size in a dtype, and a mode of the benchmarks."""

    op: str
    case: Case
    dtype: str
    mode: str


@dataclass(frozen=True)
class Row:
    """The prediction of a subject."""

    op: str
    case: str
    dtype: str
    mode: str
    floor_bytes: int
    copy_us: float
    """What a copy that moves the floor's bytes takes."""
    launches: tuple[Prediction, ...]
    others: int
    """Kernels that PyTorch starts beside them, of which only the bytes are reckoned with."""
    others_us: float
    goal_us: float | None = None
    goal: str = ""
    problem: str | None = None

    @property
    def us(self) -> float | None:
        """None where no kernel of ours runs: what PyTorch does is then seen as on a CPU, and is other on a GPU."""
        return sum(launch.total_us for launch in self.launches) + self.others_us if self.launches else None

    @property
    def unknown(self) -> int:
        return sum(launch.unknown for launch in self.launches)


def subjects_of_cases(
    ops: Sequence[str], dtypes: Sequence[str], quick: bool, modes: Sequence[str] = MODES
) -> list[Subject]:
    """All sizes of ops at which they are benchmarked, or the quick ones."""
    return [
        Subject(op, case, dtype, mode)
        for op in ops
        for case in OPS[op].cases
        if case.quick or not quick
        for dtype in OPS[op].dtypes
        if dtype in dtypes
        for mode in OPS[op].modes(modes)
    ]


def subjects_of_goals(ops: Sequence[str], dtypes: Sequence[str]) -> list[Subject]:
    """All sizes for which there is a goal."""
    return [
        Subject(goal.op, goal.case, goal.dtype, goal.mode) for goal in GOALS if goal.op in ops and goal.dtype in dtypes
    ]


class _Planned(NamedTuple):
    subject: Subject
    recorded: Recorded | None
    keys: tuple[str, ...]
    """Of the compilation of each launch."""
    floor: int
    problem: str | None = None


def _plan(subjects: Sequence[Subject], chip: Chip | BytesOnly) -> tuple[list[_Planned], list[Job]]:
    jobs: dict[str, Job] = {}
    planned = []
    modes: dict[tuple[str, str, str], Any] = {}
    for subject in subjects:
        op, case, dtype, mode = subject
        try:
            if (op, str(case), dtype) not in modes:  # of the last size only: its launches hold its tensors
                modes = {(op, str(case), dtype): record_modes(op, case, dtype)}
            recorded, floor = modes[op, str(case), dtype]
        except Exception as error:
            planned.append(_Planned(subject, None, (), 0, f"raises {type(error).__name__}: {error}"))
            continue
        keys = []
        for launch in recorded[mode].launches if isinstance(chip, Chip) else ():
            job = specialise(launch, op, str(case), dtype, chip.target)
            jobs.setdefault(job.key(), job)
            keys.append(job.key())
        planned.append(_Planned(subject, recorded[mode], tuple(keys), floor[mode]))
    return planned, list(jobs.values())


def predictions(
    subjects: Sequence[Subject],
    chip: Chip | BytesOnly,
    processes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """The rows of subjects on a chip; `progress(done, total)` is called after each compilation."""
    planned, jobs = _plan(subjects, chip)
    compiled = compile_each(jobs, processes, progress) if jobs else {}
    rows = []
    for subject, recorded, keys, floor, problem in planned:
        launches: list[Prediction] = []
        try:
            launches = [] if recorded is None else _predicted(recorded, keys, compiled, chip)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        others = [] if recorded is None else recorded.others
        goal = _goal(subject) if chip is H100 else None
        rows.append(
            Row(
                *(subject.op, str(subject.case), subject.dtype, subject.mode),
                floor_bytes=floor,
                copy_us=LAUNCH_US + memory_us(floor, chip),
                launches=tuple(launches),
                others=len(others),
                others_us=sum(LAUNCH_US + memory_us(count, chip) for count in others),
                goal_us=None if goal is None else goal.us(floor),
                goal="" if goal is None else goal.words,
                problem=problem,
            )
        )
    return rows


def _predicted(
    recorded: Recorded, keys: Sequence[str], compiled: Mapping[str, Compiled | str], chip: Chip | BytesOnly
) -> list[Prediction]:
    """The prediction of each launch. Raises RuntimeError for a kernel that did not compile."""
    if isinstance(chip, BytesOnly):
        return [predict_from_bytes(launch, chip, recorded.changed) for launch in recorded.launches]
    found = []
    for launch, key in zip(recorded.launches, keys):
        kernel = compiled[key]
        if isinstance(kernel, str):
            raise RuntimeError(f"{launch.kernel.fn.__name__} does not compile: {kernel}")
        found.append(predict(launch, kernel, chip, recorded.changed))
    return found


def _goal(subject: Subject) -> Goal | None:
    same = (goal for goal in GOALS if (goal.op, str(goal.case), goal.dtype, goal.mode) == _named(subject))
    return next(same, None)


def _named(subject: Subject) -> tuple[str, str, str, str]:
    return subject.op, str(subject.case), subject.dtype, subject.mode


COLUMNS = (
    *("op", "size", "dtype", "mode", "launches", "programs", "warps", "registers", "shared", "MB"),
    *("floor MB", "busiest", "us", "of a copy", "goal us"),
)


def cells(row: Row) -> list[str]:
    """A row as the tables show it; what is of one launch is of that which takes longest."""
    named = [row.op, row.case, row.dtype, row.mode]
    goal = "" if row.goal_us is None else f"{row.goal_us:.1f}"
    if row.problem or row.us is None:
        said = "-" if row.problem else "no kernel of ours"
        return [*named, *["-"] * 7, said, "-", "-", goal]
    longest = max(row.launches, key=lambda launch: launch.total_us)
    numbers = longest.programs, longest.resident, longest.registers, longest.shared
    return [
        *named,
        f"{len(row.launches)} + {row.others}" if row.others else str(len(row.launches)),
        *("-" if number is None else str(number) for number in numbers),
        f"{sum(launch.bytes for launch in row.launches) / 1e6:.1f}",
        f"{row.floor_bytes / 1e6:.1f}",
        longest.bound,
        f"{'> ' if row.unknown else ''}{row.us:.1f}",
        f"{100 * row.copy_us / row.us:.0f} %",
        goal,
    ]


KERNEL_COLUMNS = ("kernel", "programs", "warps", "touched MB", *PIPES, *(f"{bound} us" for bound in BOUNDS))


def kernel_cells(launch: Prediction) -> list[str]:
    """A launch as the second table shows it: instructions of one warp, and microseconds."""
    instructions = [f"{launch.instructions.get(pipe, 0):.0f}" for pipe in PIPES]
    spent = [f"{launch.us.get(bound, 0):.1f}" for bound in BOUNDS]
    bold = [f"**{text}**" if bound == launch.bound else text for bound, text in zip(BOUNDS, spent)]
    name = launch.kernel + (f" ({launch.unknown} loops unknown)" if launch.unknown else "")
    touched = "-" if launch.touched is None else f"{launch.touched / 1e6:.1f}"
    return [name, str(launch.programs), str(launch.warps), touched, *instructions, *bold]


def to_dict(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [asdict(row) | {"us": row.us} for row in rows]


def markdown(rows: Sequence[Row], chip: Chip | BytesOnly, command: str) -> str:
    """The predictions as a file of docs/."""
    lines = [
        f"# Predictions: {chip.name}",
        "",
        f"Written by `{command}`",
        f"with torch {torch.__version__} and Triton {triton.__version__}.",
        *(_FROM_CODE if isinstance(chip, Chip) else _FROM_BYTES),
        "",
        *_COLUMNS_IN_WORDS,
        "",
        markdown_table(COLUMNS, map(cells, rows), left=4),
    ]
    if with_goal := [row for row in rows if row.goal_us is not None]:
        met = [row for row in with_goal if row.us is not None and row.us <= row.goal_us]
        words = dict.fromkeys(f"- {row.op}, {row.mode}, {row.dtype}: {row.goal}" for row in with_goal if row.goal)
        lines += ["", f"{len(met)} of {len(with_goal)} goals are met by this prediction. What they are:", "", *words]
    if isinstance(chip, Chip):
        table = markdown_table(("op", "size", "mode", *KERNEL_COLUMNS), _kernels(rows), left=4)
        lines += ["", "## Kernels", "", *_KERNELS, "", table]
    if bad := [row for row in rows if row.problem]:
        lines += ["", "## Problems", ""]
        lines += [f"- {row.op} {row.case} {row.dtype} {row.mode}: {row.problem}" for row in bad]
    return "\n".join(lines) + "\n"


_FROM_CODE = (
    "Nothing was measured: there was no GPU. Each kernel was compiled for the chip; its instructions, those of loops",
    "as often as they run, are held against the published rates of the chip's pipes, its bytes against that of memory.",
    "What is reckoned and what is left out is said in `bench/predict/model.py`, the chip's numbers and their sources",
    "are in `bench/predict/chips.py`. Such a prediction can be off by 40 % and more.",
)
_FROM_BYTES = (
    "Nothing was measured: there was no GPU. Only bytes and launches are reckoned with: of this chip's instructions no",
    "rates are known here, so that each time is a lower bound. Its numbers and their source are in",
    "`bench/predict/chips.py`.",
)
_COLUMNS_IN_WORDS = (
    "Launches: our kernels + those that PyTorch starts beside them. Programs, warps (that a processor has at a",
    "time), registers, shared memory and what is busiest are of the launch that takes longest. MB: what our launches",
    "move, each of their tensors once; floor: what the op has to move. Busiest is a pipe, the issue of instructions,",
    "memory, or latency: that the instructions of a program wait for each other, with too few other programs there to",
    "fill the time. `>`: with loops of which it is not known how often they run. Of a copy: how near the op comes to a",
    "copy of its floor.",
)
_KERNELS = (
    "Touched: the sectors of 32 bytes that loads and stores touch, each as often as it is touched. Instructions of",
    "one warp, in the mean of programs, by pipe (all of them under issue); and the microseconds that each pipe,",
    "memory, the L2 cache and latency would take alone. The longest of them, bold, and the launch make the prediction.",
)


def _kernels(rows: Iterable[Row]) -> list[list[str]]:
    """The distinct launches of each row."""
    found = []
    for row in rows:
        distinct = dict.fromkeys(tuple(kernel_cells(launch)) for launch in row.launches)
        found += [[row.op, f"{row.case} {row.dtype}", row.mode, *launch] for launch in distinct]
    return found
