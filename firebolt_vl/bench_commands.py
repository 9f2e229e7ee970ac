"""Commands of `firebolt bench`: arguments checked, the work under a progress bar, its results shown."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .errors import Failure, Misuse
from .files.reading import read_text
from .files.tables import csv_of
from .files.writing import OutputError, check_output
from .outputs import allow_overwriting, check_place, check_suffix
from .progress import progress_bar


def chosen(option: str, wanted: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    """The wanted ones in the order of `there`, all of them for None; Misuse for an unknown one."""
    for name in wanted or ():
        if name not in there:
            raise Misuse(f"{option} is {name}; expected one of {', '.join(there)}")
    return [name for name in there if not wanted or name in wanted]


def writable(
    option: str, path: str | None, suffixes: Sequence[str], ours: Callable[[Path], bool], overwrite: bool
) -> Path | None:
    """A path that a file with one of the suffixes can be written to, checked before the work."""
    if path is None:
        return None
    file = Path(path)
    check_suffix(option, path, suffixes)
    check_place(option, path)
    allow_overwriting(option, path, [], ours, overwrite)
    return file


def report_file(out: str | None, title: str, key: str, overwrite: bool) -> Path | None:
    """A Markdown or JSON file that a report can be written to; ours are known by the page's title and the first key."""

    def is_report(file: Path) -> bool:
        text = file.read_text(encoding="utf-8", errors="replace")
        return text.startswith(f"# {title}") or re.match(rf'{{\s*"{key}": \[', text) is not None

    return writable("--out", out, (".md", ".json"), is_report, overwrite)


def give_report(
    file: Path | None, data: dict[str, Any], page: Callable[[str], str], as_json: bool, show: Callable[[], None]
) -> None:
    """Write a report to its file, as the page of a command line or as data; print the data, or show tables."""
    from .files.writing import write_text

    text = json.dumps(data, indent=1)
    if file:
        write_text(file, page(command_line()) if file.suffix.lower() == ".md" else text)
    if as_json:
        print(text)
    else:
        show()


def check_compiling(is_interpreting: bool) -> None:
    """Raise Misuse where kernels are made for Triton's interpreter."""
    if is_interpreting:
        raise Misuse("TRITON_INTERPRET is set, so that kernels are interpreted and cannot be compiled; unset it")


def fail_for(problems: Sequence[str], what: str) -> None:
    """Print the problems, if there are any, and raise Failure."""
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        raise Failure(f"{len(problems)} {what}")


def new_table(title: str, columns: Sequence[str], left: Sequence[str]) -> Table:
    """A table whose columns are to the right, but for those named in `left`, and not wrapped."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def show_table(table: Table, width: int = 160) -> None:
    """Print a table as wide as the terminal; elsewhere `width` letters wide."""
    Console(width=None if sys.stdout.isatty() else width).print(table)


def folder_for(out: str, files: Iterable[str], ours: Callable[[Path], bool]) -> Path:
    """The folder that `files` are to be written to. Raises Misuse where it cannot be one, or one of them is there and
    `ours` says of the folder that it is none that this command wrote."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise Misuse(f"--out is {out}, a file; expected a folder")
    for file in files:
        try:
            check_output("--out", folder / file, ours=lambda _: ours(folder), hint="name another folder")
        except OutputError as error:
            raise Misuse(str(error)) from None
    return folder


def begins_with(table: Path, kind: type) -> bool:
    """Tell by the names of its columns whether a file is a table of rows of a dataclass."""
    try:
        return read_text(table).splitlines()[:1] == csv_of(kind, []).splitlines()
    except (OSError, ValueError):
        return False


def command_line() -> str:
    return shlex.join(["firebolt", *sys.argv[1:]])


def compile_report(
    ops,
    targets,
    dtypes,
    quick: bool,
    in_turn: bool,
    processes: int | None,
    out: str | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    file = report_file(out, "Compile report\n", "rows", overwrite)
    try:
        from .bench import compile as compiling
        from .bench.cases import HALVES_AND_FLOAT32, OPS
    except ModuleNotFoundError as error:
        raise Failure(f"bench compile needs {error.name}, which is not installed") from None
    targets = chosen("--target", targets, tuple(compiling.CHIPS))
    dtypes = chosen("--dtype", dtypes, compiling.QUICK_DTYPES if quick else HALVES_AND_FLOAT32)
    there = chosen("--op", ops, tuple(OPS))
    check_compiling(compiling.is_interpreting())
    with progress_bar("compiling") as progress:
        rows = compiling.report(there, dtypes, targets, quick, processes or os.cpu_count() or 1, progress, in_turn)
    data = {"rows": [asdict(row) for row in rows]}
    page = partial(compiling.markdown, rows)
    give_report(file, data, page, as_json, lambda: _show_compilations(rows, compiling))
    bad = [f"{row.described()}: {row.problem}" for row in rows if row.problem]
    fail_for(bad, f"of {len(rows)} compilations have a problem")


def _show_compilations(rows, compiling) -> None:
    title = "the size nearest to a limit, of each kernel, dtype and target"
    table = new_table(title, compiling.COLUMNS, compiling.COLUMNS[:4])
    for row in compiling.worst(rows):
        table.add_row(*compiling.cells(row), style="red" if row.problem else None)
    show_table(table)
    seconds = sum(row.seconds or 0 for row in rows)
    print(f"{len(rows)} distinct compilations, {seconds:.0f} s of compiling")


def emulation_report(
    ops,
    targets,
    dtypes,
    quick: bool,
    mutate: bool,
    seed: int,
    processes: int | None,
    out: str | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    file = report_file(out, "Emulation\n", "cases", overwrite)
    try:
        from .bench import compile as compiling
        from .bench.cases import HALVES_AND_FLOAT32, OPS
        from .bench.emulate import mutate as mutating
        from .bench.emulate import page as pages
        from .bench.emulate import report as emulating
    except ModuleNotFoundError as error:
        raise Failure(f"bench emulate needs {error.name}, which is not installed") from None
    targets = chosen("--target", targets or ["sm_80"], emulating.TARGETS)
    dtypes = chosen("--dtype", dtypes, compiling.QUICK_DTYPES if quick else HALVES_AND_FLOAT32)
    there = chosen("--op", ops, tuple(OPS))
    check_compiling(compiling.is_interpreting())
    processes = processes or os.cpu_count() or 1
    with progress_bar("emulating") as progress:
        rows = emulating.report(emulating.plan(there, dtypes, targets, quick, seed), processes, progress)
    outcomes = []
    if mutate:
        with progress_bar("making mistakes") as progress:
            outcomes = mutating.report(mutating.plan(there, quick, seed), processes, progress)
    data = {"cases": [asdict(row) for row in rows], "mistakes": [outcome._asdict() for outcome in outcomes]}
    page = partial(pages.page, rows, outcomes)
    give_report(file, data, page, as_json, lambda: _show_emulations(rows, outcomes, pages))
    problems = [f"{row.described()}: {problem}" for row in rows for problem in row.problems]
    fail_for(problems, f"problems in {len(rows)} cases")


def _show_emulations(rows, outcomes, pages) -> None:
    table = new_table("errors as shares of what the budget allows", pages.COLUMNS, pages.COLUMNS[: pages.LEFT])
    for row in rows:
        table.add_row(*pages.cells(row), style="red" if row.problems else None)
    show_table(table, 200)
    print(f"{len(rows)} cases, {sum(row.instructions for row in rows):,} instructions")
    if outcomes:
        print(pages.mistakes(outcomes))


def crossover(dtype: str, seconds: float, longest: int, device: str) -> None:
    from .bench.cases import HALVES_AND_FLOAT32
    from .bench.crossover import print_crossover
    from .checkpoint import choose_device

    device = choose_device(device)
    chosen("--dtype", [dtype], ("float32", "float64") if device == "cpu" else HALVES_AND_FLOAT32)
    print_crossover(dtype, seconds, longest, device)


def packing(size: str, device: str, *, seconds: float, **sizes) -> None:
    from .bench.packing import SIZES, print_packing
    from .checkpoint import choose_device

    chosen("--size", [size], tuple(SIZES))
    print_packing(size, choose_device(device), seconds=seconds, **sizes)


def kernel_benchmarks(
    ops, device: str, dtype: str | None, mode: str | None, out: str, quick: bool, threads: int, as_json: bool
) -> None:
    # The profiler, which counts memory, writes to stderr otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from .bench import kernels as measuring
    from .bench.cases import HALVES_AND_FLOAT32
    from .bench.predict.beside import predicted_ms
    from .checkpoint import choose_device
    from .files.writing import write_text, write_whole

    ops = chosen("--op", ops, measuring.SUBJECTS)
    modes = chosen("--mode", [mode] if mode else None, measuring.MODES)
    device = choose_device(device)
    [dtype] = chosen("--dtype", [dtype or ("bfloat16" if device == "cuda" else "float32")], HALVES_AND_FLOAT32)
    pictures = [f"{op}.png" for op in ops]
    folder = folder_for(out, pictures, lambda folder: begins_with(folder / "kernels.csv", measuring.Point))
    kept = _kept_points(folder / "kernels.csv")
    torch.set_num_threads(threads)
    points, notes = [], []
    seconds = measuring.QUICK_SECONDS if quick else measuring.SECONDS
    for op in ops:
        of_op = []
        with progress_bar(op) as progress:
            total = measuring.count_subjects(op, dtype, quick)
            progress(0, total)
            for number, subject in enumerate(measuring.subjects(op, dtype, device, quick)):
                of_op += measuring.measure(subject, modes, device, seconds, notes.append)
                progress(number + 1, total)
        points += of_op
        if not of_op:
            continue
        try:
            write_text(folder / "kernels.csv", measuring.to_csv(measuring.beside(kept, points)))
            write_whole(folder / f"{op}.png", lambda path, of_op=of_op: measuring.plot(of_op, path))
        except OSError as error:
            raise Failure(
                f"--out is {out}, which could not be written ({error.strerror or error}); name another folder"
            ) from None
        if not as_json:
            predicted, missing = predicted_ms(op, dtype, modes, quick, device)
            _show_times(measuring.speed_ups(of_op), predicted)
            notes += missing
    if as_json:
        print(json.dumps({"points": measuring.to_dict(points)}, indent=1))
    elif points:
        print(f"{points[0].device}, {points[0].clock}; {folder / 'kernels.csv'} and a plot for each op")
    for note in notes:
        print(note, file=sys.stderr)
    if not points:
        raise Misuse(f"--dtype is {dtype}, in which none of {', '.join(ops)} is measured; choose another one")
    if red := measuring.red_checks(points):
        for line in red:
            print(line, file=sys.stderr)
        raise Failure(f"{len(red)} sizes have a red check; no speed-up is shown for them")


def _kept_points(file: Path) -> list:
    """Read the points of earlier runs. Raises Misuse where the file is something else."""
    from .bench import kernels as measuring

    try:
        return measuring.from_csv(read_text(file)) if file.exists() else []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Misuse(f"--out has {file}, which is no table of this command ({error}); name another folder") from None


def _show_times(rows, predicted: dict[tuple[str, str], str]) -> None:
    table = Table(title=f"{rows[0]['op']}, {rows[0]['dtype']}", title_justify="left")
    table.add_column("size")
    table.add_column("mode")
    others = list(dict.fromkeys(name for row in rows for name in row["points"] if name != "ours"))
    columns = ["ours ms", *(["predicted ms"] if predicted else []), "GB/s", "of a copy", "peak MB"]
    for name in (*(f"{name} ms" for name in others), *columns):
        table.add_column(name, justify="right", no_wrap=True)
    for name in others:
        table.add_column(f"x {name}", justify="right", no_wrap=True)
    for row in rows:
        found, ratios, ours = row["points"], row["speed_ups"], row["points"].get("ours")
        times = [f"{found[name].median_ms:.3f}" if name in found else "-" for name in (*others, "ours")]
        if predicted:
            times.append(predicted.get((row["sizes"], row["mode"]), "-"))
        roof = (
            [f"{ours.gb_per_s:.1f}", f"{100 * ours.share_of_copy:.0f} %", f"{ours.peak_mb:.1f}"] if ours else ["-"] * 3
        )
        faster = ["red" if ratios is None else f"{ratios[name]:.2f}" if name in ratios else "-" for name in others]
        table.add_row(row["sizes"], row["mode"], *times, *roof, *faster)
    show_table(table)


def answer_benchmark(
    peers: bool,
    device: str,
    dtypes,
    new_tokens: int,
    rounds: int,
    only,
    threads: int | None,
    out: str,
    as_json: bool,
) -> None:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    from .bench import answer as measuring
    from .checkpoint import choose_device, quiet
    from .engine_benchmark import NAMES, engine_subjects, names_there
    from .files.writing import write_text, write_whole

    in_pytorch = (*measuring.OURS, *measuring.PEERS, *measuring.ON_REQUEST)
    chosen("--only", only, (*in_pytorch, *NAMES))
    device = choose_device(device)
    there = names_there() if peers and device == "cpu" else ()
    outside = [name for name in only or there if name in NAMES]
    if outside and device != "cpu":
        raise Misuse(f"--device is {device} with {outside[0]}, which runs on a CPU; expected cpu, or --only without it")
    dtypes = chosen("--dtype", dtypes or ["bfloat16" if device == "cuda" else "float32"], measuring.DTYPES)
    written = ("answer.csv", "answer.png")
    folder = folder_for(out, written, lambda folder: begins_with(folder / "answer.csv", measuring.Row))
    if threads is not None:
        torch.set_num_threads(threads)
    rows, told = [], []
    with quiet(), engine_subjects(outside, torch.get_num_threads()) as others:
        for dtype in dtypes:
            with progress_bar(dtype) as progress:
                subjects = list(measuring.build(dtype, device, new_tokens, peers or bool(only), only))
                subjects += others if dtype == dtypes[-1] else []
                rows += measuring.measure(subjects, new_tokens, rounds, device, progress)
                told += measuring.notes(subjects, device)
    try:
        write_text(folder / "answer.csv", measuring.to_csv(rows))
        write_whole(folder / "answer.png", lambda path: measuring.plot(rows, path))
    except OSError as error:
        raise Failure(
            f"--out is {out}, which could not be written ({error.strerror or error}); name another folder"
        ) from None
    if as_json:
        print(json.dumps([row.to_json() for row in rows], indent=1))
    else:
        _show_answers(rows)
        for note in told:
            print(note)
        print(f"{folder / 'answer.csv'} and {folder / 'answer.png'}")


def _show_answers(rows) -> None:
    first = rows[0]
    title = f"{first.new_tokens} tokens, {first.device}, {first.threads} threads"
    table = Table(title=title, title_justify="left")
    for column in ("", "dtype"):
        table.add_column(column, no_wrap=True)
    columns = (
        "first token s",
        "tokens/s",
        "answer s",
        "peak MB",
        "disk MB",
        "MB read a token",
        "tokens/s at most",
        "%",
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        numbers = (f"{row.first_token_s:.3f}", f"{row.decode_tok_s:.2f}", f"{row.answer_s:.2f}", f"{row.peak_mb:,.0f}")
        share = f"{100 * row.decode_tok_s / row.floor_tok_s:.0f}"
        sizes = (f"{row.disk_mb:,.0f}", f"{row.read_mb:,.0f}")
        table.add_row(row.name, row.dtype, *numbers, *sizes, f"{row.floor_tok_s:.2f}", share)
    show_table(table)
    for contains in dict.fromkeys(row.contains for row in rows):
        print(f"{', '.join(dict.fromkeys(row.name for row in rows if row.contains == contains))}: {contains}")
