"""`firebolt bench predict` and `firebolt bench host`: what can be known without a GPU of its time, and its host's."""

import os
from dataclasses import asdict
from functools import partial

from rich.table import Table

from .bench_commands import check_compiling, chosen, fail_for, give_report, new_table, report_file, show_table
from .errors import Failure, Misuse
from .progress import progress_bar


def predictions(
    ops,
    chip: str,
    dtypes,
    quick: bool,
    goals: bool,
    processes: int | None,
    out: str | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    file = report_file(out, "Predictions: ", "predictions", overwrite)
    try:
        from .bench import compile as compiling
        from .bench.cases import HALVES_AND_FLOAT32, OPS
        from .bench.predict import report
        from .bench.predict.chips import NAMES, BytesOnly, chip_of
        from .bench.predict.compiled import disassembler
    except ModuleNotFoundError as error:
        raise Failure(f"bench predict needs {error.name}, which is not installed") from None
    [name] = chosen("--chip", [chip], NAMES)
    dtypes = chosen("--dtype", dtypes, compiling.QUICK_DTYPES if quick else HALVES_AND_FLOAT32)
    ops, on = chosen("--op", ops, tuple(OPS)), chip_of(name)
    if not isinstance(on, BytesOnly):
        check_compiling(compiling.is_interpreting())
        if disassembler() is None:
            raise Failure("bench predict needs nvdisasm, which comes with Triton's wheels and with CUDA; none is found")
    subjects = report.subjects_of_goals(ops, dtypes) if goals else report.subjects_of_cases(ops, dtypes, quick)
    if not subjects:
        raise Misuse(f"--op is {', '.join(ops)}, which has no goal in {', '.join(dtypes)}; choose another one")
    with progress_bar("compiling") as progress:
        rows = report.predictions(subjects, on, processes or os.cpu_count() or 1, progress)
    data = {"predictions": report.to_dict(rows), "chip": on._asdict()}
    page = partial(report.markdown, rows, on)
    give_report(file, data, page, as_json, lambda: _show_predictions(rows, on.name, report))
    bad = [f"{row.op}, {row.case}, {row.dtype}, {row.mode}: {row.problem}" for row in rows if row.problem]
    fail_for(bad, f"of {len(rows)} could not be predicted")


def predicted_configurations(ops, chip: str, dtypes, quick: bool, processes: int | None) -> None:
    """Print the configurations that are predicted to be quicker than the defaults, as a file of a chip has them."""
    from .bench import compile as compiling
    from .bench.cases import HALVES_AND_FLOAT32, OPS
    from .bench.predict.around import trials
    from .bench.predict.chips import CHIPS
    from .bench.sweep import table_of

    [name] = chosen("--chip", [chip], tuple(CHIPS))
    dtypes = chosen("--dtype", dtypes, compiling.QUICK_DTYPES if quick else HALVES_AND_FLOAT32)
    check_compiling(compiling.is_interpreting())
    subjects = [
        (op, case, dtype)
        for op in chosen("--op", ops, tuple(OPS))
        for case in OPS[op].cases
        for dtype in OPS[op].dtypes
        if dtype in dtypes and (case.quick or not quick)
    ]
    found = []
    with progress_bar("trying") as progress:
        for number, of_one in enumerate(trials(subjects, CHIPS[name], processes or os.cpu_count() or 1)):
            found += of_one
            progress(number + 1, len(subjects))
    print(table_of(found, CHIPS[name].name, "firebolt bench predict --around"), end="")


def host_costs(ops, dtypes, out: str | None, as_json: bool, overwrite: bool) -> None:
    file = report_file(out, "What the kernels cost the host\n", "host", overwrite)
    try:
        from .bench import host
        from .bench.cases import HALVES_AND_FLOAT32, OPS
        from .bench.silent import Unsupported
    except ModuleNotFoundError as error:
        raise Failure(f"bench host needs {error.name}, which is not installed") from None
    import torch

    dtypes = chosen("--dtype", dtypes, HALVES_AND_FLOAT32)
    wanted = [(op, dtype) for op in chosen("--op", ops, tuple(OPS)) for dtype in OPS[op].dtypes if dtype in dtypes]
    if not wanted:
        raise Misuse(f"--dtype is {', '.join(dtypes)}, in which none of {', '.join(ops)} is there; choose another one")
    torch.set_num_threads(1)
    rows = []
    with progress_bar("calling") as progress:
        progress(0, len(wanted))
        for op, dtype in wanted:
            try:
                rows.append(host.measure(op, dtype))
            except Unsupported as error:
                raise Failure(f"bench host: {error}") from None
            progress(len(rows), len(wanted))
    data = {"host": [asdict(row) for row in rows]}
    give_report(file, data, partial(host.markdown, rows), as_json, lambda: _show_host_costs(rows, host))


def _show_host_costs(rows, host) -> None:
    title = "compilations as sizes vary, and the time of a call"
    table = new_table(title, host.COLUMNS, ("op", "dtype", "most often"))
    for row in rows:
        table.add_row(*host.cells(row))
    show_table(table)


def _show_predictions(rows, chip: str, report) -> None:
    table = Table(title=f"predicted for {chip}, nothing was measured", title_justify="left")
    for column in report.COLUMNS:
        table.add_column(column, justify="left" if column in report.COLUMNS[:4] else "right", no_wrap=column != "size")
    for row in rows:
        over = None not in (row.us, row.goal_us) and row.us > row.goal_us
        table.add_row(*report.cells(row), style="red" if row.problem or over else None)
    show_table(table, 200)
