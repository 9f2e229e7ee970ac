"""Microbenchmarks of the ops: the reference implementation, torch.compile of it, and ours, side by side.

A point is one op, provider, mode and size. Its GB/s are the op's floor (each input and output, with gradients also
their gradients, moved once) over the median time; its share is how near that comes to a copy of as many bytes, measured
in turns with it. Each size is checked before it is timed: ours has to be within the error budget (`budget.py`).
"""

import math
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..files.tables import csv_of, rows_of_csv
from ..kernels import reference
from . import modulator
from .budget import over_budget
from .cases import OPS, Case, Inputs, inputs
from .timing import Run, clock_name, peak_bytes, quantile, time_in_turns

MODES = ("forward", "backward", "both")
SUBJECTS = (*OPS, "cmm")
# Reference implementations that loop over time keep every step for backward.
MOST_BYTES_OF_A_LOOP = 3 * 2**30
# How long each provider runs at a size and mode.
SECONDS, QUICK_SECONDS = 0.5, 0.15


class Subject(NamedTuple):
    """One size of an op, ready to run: what is measured."""

    op: str
    case: str
    dtype: str
    providers: dict[str, Callable[[], Any]]
    leaves: list[Tensor]
    tensors: list[Tensor]
    """All that is read."""
    check: Callable[[], str | None]
    """What is wrong with ours, or None."""


@dataclass(frozen=True)
class Point:
    """A line of the CSV."""

    op: str
    provider: str
    mode: str
    sizes: str
    dtype: str
    median_ms: float
    q20_ms: float
    q80_ms: float
    gb_per_s: float
    share_of_copy: float
    peak_mb: float
    check: str
    """"green", or what is wrong with ours at this size."""
    device: str
    clock: str
    torch: str
    triton: str
    commit: str


def subjects(op: str, dtype: str, device: str, quick: bool) -> Iterator[Subject]:
    if op == "cmm":
        yield from (cmm_subject(part, sizes, dtype, device) for part, sizes in modulator.CASES)
        return
    yield from (op_subject(op, case, dtype, device) for case in _timed_cases(op, dtype, quick))


def count_subjects(op: str, dtype: str, quick: bool) -> int:
    if op == "cmm":
        return len(modulator.CASES)
    return len(_timed_cases(op, dtype, quick))


def _timed_cases(op: str, dtype: str, quick: bool) -> list[Case]:
    cases = OPS[op].cases if dtype in OPS[op].dtypes else ()
    return [case for case in cases if case.timed and (case.quick or not quick)]


Providers = dict[str, Callable[[], Any]]


def op_subject(
    op: str, case: Case, dtype: str, device: str, others: Callable[[str, Inputs], Providers] = lambda op, call: {}
) -> Subject:
    """An op at a size; `others` gives further providers for its arguments."""
    call = OPS[op].leaves(inputs(op, case, dtype, device))
    public, definition = functions(op)
    providers: Providers = {**others(op, call), "ours": lambda: public(*call.args, **call.kwargs)}
    # Inductor makes no code for complex numbers: it would run the reference implementation as it is.
    if not OPS[op].loops and not any(tensor.is_complex() for tensor in call.tensors()):
        torch._dynamo.reset()
        compiled = torch.compile(definition, dynamic=False)
        providers = {"compiled": lambda: compiled(*call.args, **call.kwargs), **providers}
    if not OPS[op].loops or 40 * math.prod(case.sizes.values()) < MOST_BYTES_OF_A_LOOP:
        providers = {"eager": lambda: definition(*call.args, **call.kwargs), **providers}
    small = _small(op, case)

    def right() -> str | None:
        return check(public, definition, inputs(op, small, dtype, device))

    return Subject(op, str(case), dtype, providers, call.leaves(), call.tensors(), right)


def functions(op: str) -> tuple[Callable, Callable]:
    """An op and its definition; what they change is returned too."""
    found = getattr(kernels, op), getattr(reference, op)
    return (with_changed(found[0]), with_changed(found[1])) if OPS[op].in_place else found


def with_changed(function: Callable) -> Callable:
    """A function that changes its first argument and has no gradients; it returns that argument last."""

    def run(changed: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return function(changed, *args, **kwargs), changed.detach()

    return run


def cmm_subject(part: str, sizes: dict[str, int], dtype: str, device: str) -> Subject:
    """The modulator or a part of it against the same written from its equations, same parameters; the whole layer also
    against its linear maps alone."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer = modulator.make_layer(part, sizes, getattr(torch, dtype)).to(device)
    shapes = [(sizes["B"], sizes["T"], sizes["D"])] + ([(sizes["B"], sizes["G"], sizes["D_v"])] if "G" in sizes else [])
    given = [_as_leaf(torch.randn(shape, generator=generator).to(device, getattr(torch, dtype))) for shape in shapes]
    plain = modulator.by_equations(layer, sizes["T"])
    parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    label = " ".join([part, *(f"{name}={size}" for name, size in sizes.items())])

    def right() -> str | None:
        state = layer.state_dict()

        def defined(tensors: list[Tensor]) -> list[Tensor]:
            same = modulator.make_layer(part, sizes, tensors[0].dtype).to(device)
            same.load_state_dict(dict(zip(state, tensors[len(given) :], strict=True)))
            return [modulator.by_equations(same, sizes["T"])(*tensors[: len(given)])]

        arithmetic = getattr(torch, dtype)
        with torch.no_grad():
            return over_budget([layer(*given)], defined, [*given, *state.values()], names=["y"], arithmetic=arithmetic)

    providers = {"eager": lambda: plain(*given), "ours": lambda: layer(*given)}
    if part == "whole layer":
        linear = modulator.linear_maps(layer)
        providers["linear maps"] = lambda: linear(*given)
    return Subject("cmm", label, dtype, providers, [*given, *parameters], [*given, *parameters], right)


def _as_leaf(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_(tensor.is_floating_point() or tensor.is_complex())


def _small(op: str, case: Case) -> Case:
    """The size at which a case is checked. Among fewer rows of scores there is hardly one whose K-th and next differ by
    a rounding alone, where different rounding rightly selects another grid; and loops over time take long."""
    most = {"B": 2, "T": 64} | ({"L": 128} if OPS[op].loops else {})
    return case._replace(sizes={name: min(size, most.get(name, size)) for name, size in case.sizes.items()})


def check(public: Callable, definition: Callable, call: Inputs) -> str | None:
    """Describe what of the values and gradients of `public` is over the error budget; None where nothing is."""
    found = values_and_gradients(public, call)
    outputs = [tensor for name, tensor in found.items() if name.startswith("output")]
    cotangents = random_cotangents(outputs)

    def defined(tensors: list[Tensor]) -> list[Tensor]:
        changed = iter(tensors)
        same = call.map(lambda _: next(changed))
        return list(values_and_gradients(definition, same, tensors[-len(outputs) :]).values())

    return over_budget(list(found.values()), defined, [*call.tensors(), *cotangents], names=list(found))


def values_and_gradients(function: Callable, call: Inputs, cotangents: Sequence[Tensor] | None = None) -> dict:
    """Compute outputs, and gradients for the cotangents, or for random ones, by name."""
    call = call.map(lambda tensor: _as_leaf(tensor.detach().clone()))
    outputs = _outputs(function(*call.args, **call.kwargs))
    cotangents = random_cotangents(outputs) if cotangents is None else cotangents
    learns = any(output.requires_grad for output in outputs)
    gradients = torch.autograd.grad(outputs, call.leaves(), cotangents) if learns else []
    named = {f"output {i}": output for i, output in enumerate(outputs)}
    return named | {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}


def random_cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The same for outputs of the same shapes and dtypes."""
    generator = torch.Generator(outputs[0].device).manual_seed(1)

    def random_like(output: Tensor) -> Tensor:
        dtype = torch.complex64 if output.is_complex() else torch.float32
        return torch.randn(output.shape, generator=generator, dtype=dtype, device=output.device).to(output.dtype)

    return [random_like(output) for output in outputs]


def _outputs(outputs: Any) -> list[Tensor]:
    """Those that gradients can be taken of; all where there are none."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [output for output in outputs if output.requires_grad] or list(outputs)


def runs_of(subject: Subject, mode: str) -> tuple[dict[str, Run], int]:
    """Return what to time for each provider, and the bytes that have to move."""
    outputs = _outputs(subject.providers["ours"]())
    cotangents = [torch.randn_like(output) for output in outputs]
    moved = bytes_to_move(subject.tensors, outputs, subject.leaves)[mode]

    def gradients_of(outputs: Any) -> None:
        torch.autograd.grad(_outputs(outputs), subject.leaves, cotangents, allow_unused=True)

    def run(provider: Callable[[], Any]) -> Run:
        if mode == "forward":

            def without_gradients(_):
                with torch.no_grad():
                    provider()

            return Run(without_gradients)
        if mode == "backward":
            return Run(gradients_of, provider)
        return Run(lambda _: gradients_of(provider()))

    return {name: run(provider) for name, provider in subject.providers.items()}, moved


def bytes_to_move(read: Sequence[Tensor], written: Sequence[Tensor], leaves: Sequence[Tensor]) -> dict[str, int]:
    """The floor by mode: each tensor once, with gradients also the gradients of outputs and leaves."""
    inputs, outputs, gradients = (sum(tensor.nbytes for tensor in some) for some in (read, written, leaves))
    forward, backward = inputs + outputs, inputs + outputs + gradients
    return {"forward": forward, "backward": backward, "both": forward + backward}


def copy_run(size: int, device: str) -> Run:
    """A copy that reads and writes `size` bytes together."""
    source = torch.ones(max(1, size // 2), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return Run(lambda _: target.copy_(source))


def measure(
    subject: Subject, modes: Sequence[str], device: str, seconds: float, note: Callable[[str], None] = lambda text: None
) -> list[Point]:
    """The points of a subject. A provider that cannot run is left out, which `note` is told; if it is ours, that is the
    check's result."""
    red = _try(subject.check)
    points = []
    for mode in modes if subject.op not in OPS else OPS[subject.op].modes(modes):
        runs, moved = runs_of(subject, mode)
        for name, run in list(runs.items()):
            if problem := _try(lambda run=run: run.work(run.prepare()) and None):
                note(f"{subject.op} {subject.case} {mode}: {name} is left out: {problem}")
                del runs[name]
        times = time_in_turns({"copy": copy_run(moved, device), **runs}, device, seconds)
        copied = quantile(times["copy"], 0.5)
        for name, run in runs.items():
            median, q20, q80 = (quantile(times[name], share) for share in (0.5, 0.2, 0.8))
            points.append(
                Point(
                    op=subject.op,
                    provider=name,
                    mode=mode,
                    sizes=subject.case,
                    dtype=subject.dtype,
                    median_ms=round(median, 5),
                    q20_ms=round(q20, 5),
                    q80_ms=round(q80, 5),
                    gb_per_s=round(1e-6 * moved / median, 3),
                    share_of_copy=round(copied / median, 4),
                    peak_mb=round(peak_bytes(run, device) / 1e6, 3),
                    check="green" if red is None else f"red: {red}",
                    device=device_name(device),
                    clock=clock_name(device),
                    torch=torch.__version__,
                    triton=_triton_version(),
                    commit=commit(),
                )
            )
    return points


def _try(run: Callable[[], str | None]) -> str | None:
    """Return what `run` returns, or the error that it raises, in one line."""
    try:
        return run()
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _triton_version() -> str:
    try:
        import triton
    except ModuleNotFoundError:
        return ""
    return triton.__version__


def commit() -> str:
    """The commit of this copy, with a + if files differ from it; the version where there is no git."""
    root = Path(__file__).resolve().parents[1]
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return version("firebolt-vl")
    return described.stdout.strip()


def to_csv(points: Sequence[Point]) -> str:
    return csv_of(Point, points)


def from_csv(text: str) -> list[Point]:
    return rows_of_csv(Point, text)


def beside(kept: Sequence[Point], points: Sequence[Point]) -> list[Point]:
    """`points`, after those of `kept` that they do not stand for: of another op, mode, dtype, device or clock.

    All providers of an op are measured in turns, so that an op's lines come and go together.
    """

    def measured(point: Point) -> tuple[str, ...]:
        return point.op, point.mode, point.dtype, point.device, point.clock

    anew = {measured(point) for point in points}
    return [*(point for point in kept if measured(point) not in anew), *points]


def speed_ups(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Compute for each size and mode the medians by provider, and the speed-ups of ours; None where a check is red."""
    groups: dict[tuple, dict[str, Point]] = {}
    for point in points:
        groups.setdefault((point.op, point.sizes, point.dtype, point.mode), {})[point.provider] = point
    rows = []
    for (op, sizes, dtype, mode), found in groups.items():
        ours = found.get("ours")
        green = ours is not None and ours.check == "green"
        ratios = {name: found[name].median_ms / ours.median_ms for name in found if name != "ours"} if green else None
        rows.append({"op": op, "sizes": sizes, "dtype": dtype, "mode": mode, "points": found, "speed_ups": ratios})
    return rows


def red_checks(points: Sequence[Point]) -> list[str]:
    """A line for each op and size whose check is red, or that ours could not run."""
    lines = {
        f"{point.op}, {point.sizes}, {point.dtype}: {point.check}": None for point in points if point.check != "green"
    }
    for row in speed_ups(points):
        if "ours" not in row["points"]:
            lines[f"{row['op']}, {row['sizes']}, {row['dtype']}: ours does not run"] = None
    return list(lines)


def to_dict(points: Sequence[Point]) -> list[dict]:
    return [asdict(point) for point in points]


def plot(points: Sequence[Point], path: Path) -> None:
    """Time of each provider at each size of one op, a panel for each mode; whiskers from the 20 to 80 % quantile."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    modes = [mode for mode in MODES if any(point.mode == mode for point in points)]
    sizes = list(dict.fromkeys(point.sizes for point in points))
    height = 1.6 + 0.42 * len(sizes)
    figure = Figure(figsize=(3.2 + 3.4 * len(modes), height), layout="constrained")
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    styles = {
        "eager": ("C7", "o", -0.2),
        "compiled": ("C0", "s", 0.0),
        "ours": ("C1", "D", 0.2),
        "linear maps": ("C2", "^", 0.0),
    }
    for axis, mode in zip(axes, modes):
        for provider, (color, marker, shift) in styles.items():
            there = [point for point in points if point.mode == mode and point.provider == provider]
            if not there:
                continue
            x = [point.median_ms for point in there]
            y = [sizes.index(point.sizes) + shift for point in there]
            spread = [
                [point.median_ms - point.q20_ms for point in there],
                [point.q80_ms - point.median_ms for point in there],
            ]
            axis.errorbar(x, y, xerr=spread, fmt=marker, color=color, label=provider, markersize=5, capsize=2)
        ours = [point for point in points if point.mode == mode and point.provider == "ours"]
        copies = [point.median_ms * point.share_of_copy for point in ours]
        axis.scatter(copies, [sizes.index(point.sizes) for point in ours], marker="|", s=260, color="k", label="copy")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_title("forward + backward" if mode == "both" else mode)
        axis.set_xlabel("ms")
        axis.grid(True, axis="x", alpha=0.25)
    axes[0].set_yticks(range(len(sizes)), sizes, fontsize=8)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    first = points[0]
    figure.suptitle(f"{first.op}, {first.dtype}: {first.device}, {first.clock}", fontsize=10)
    figure.savefig(path, dpi=130)
