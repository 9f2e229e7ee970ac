"""Pages of the day: README.md, tables as CSV and pictures, from what is known of each step."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...files.tables import csv_of, markdown_table
from ...files.writing import write_text, write_whole
from .. import answer
from .. import kernels as measuring
from ..sweep import Trial, winners

Known = dict[str, dict[str, Any]]


def rows_of(known: Known, kind: str) -> list[dict[str, Any]]:
    """Collect the rows of the steps of a kind, notes left out."""
    return [row for step in known.values() if step["kind"] == kind for row in step["rows"] if "note" not in row]


def write_tables(folder: Path, about: dict[str, str], known: Known) -> None:
    """Write README.md, and a CSV where there is something to show."""
    points = [measuring.Point(**row) for row in rows_of(known, "times")]
    answers = [answer.Row(**row) for row in rows_of(known, "answers")]
    trials = [Trial(**row) for row in rows_of(known, "sweep")]
    for kind, rows in ((measuring.Point, points), (answer.Row, answers), (Trial, trials)):
        if rows:
            write_text(folder / f"{NAMES[kind]}.csv", csv_of(kind, rows))
    write_text(folder / "README.md", page(about, known))


def write_pictures(folder: Path, known: Known) -> None:
    """Draw the times of each op and dtype, and the answers."""
    points = [measuring.Point(**row) for row in rows_of(known, "times")]
    answers = [answer.Row(**row) for row in rows_of(known, "answers")]
    for op, dtype in dict.fromkeys((point.op, point.dtype) for point in points):
        of_op = [point for point in points if (point.op, point.dtype) == (op, dtype)]
        write_whole(folder / f"{op}-{dtype}.png", lambda path, of_op=of_op: measuring.plot(of_op, path))
    if answers:
        write_whole(folder / "answers.png", lambda path: answer.plot(answers, path))


NAMES: dict[type, str] = {measuring.Point: "times", answer.Row: "answers", Trial: "configurations"}


def page(about: dict[str, str], known: Known) -> str:
    """README.md."""
    rehearsed = about["scale"] != "full"
    title = f"# {about['device']}: measured{' in a rehearsal, which says nothing of speed' if rehearsed else ''}"
    versions = f"torch {about['torch']}, Triton {about['triton']}, commit {about['commit']}"
    command = "firebolt bench gpu-day" + (" --rehearse" if rehearsed else "")
    parts = [
        [title, "", f"Written by `{command}` with {versions}."],
        ["## Steps", "", markdown_table(("step", "state", "rows", "seconds"), map(_step, known.values()), left=2)],
        _tests(rows_of(known, "tests")),
        _times(known),
        _answers(rows_of(known, "answers")),
        _configurations([Trial(**row) for row in rows_of(known, "sweep")]),
        _notes(known),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _step(step: dict[str, Any]) -> list[Any]:
    state = "finished" if step["finished"] else step["problem"] or "broken off with the command"
    return [step["step"], state, len(step["rows"]), step.get("seconds", "")]


def _tests(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    counts = Counter(row["result"] for row in {row["test"]: row for row in rows}.values())
    said = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
    failed = [f"- {row['test']}: {row['result']}" for row in rows if row["result"] in ("failed", "error")]
    return ["## Tests of kernels, compiled", "", f"{said}.", *(["", *failed] if failed else [])]


def _times(known: Known) -> list[str]:
    """Measured times beside those of others and the prediction."""
    points = [measuring.Point(**row) for row in rows_of(known, "times")]
    if not points:
        return []
    predicted = {
        (row["op"], row["sizes"], row["dtype"], row["mode"]): row
        for row in rows_of(known, "predict")
        if row["predicted_us"]
    }
    rows = []
    for row in measuring.speed_ups(points):
        place = row["op"], row["sizes"], row["dtype"], row["mode"]
        ours, said = row["points"].get("ours"), predicted.get(place)
        others = [f"{name} {one.median_ms * 1000:.1f}" for name, one in row["points"].items() if name != "ours"]
        us = ours and 1000 * ours.median_ms
        cells = [f"{us:.1f}", f"{100 * ours.share_of_copy:.0f} %"] if ours else ["-", "-"]
        foretold = [f"{said['predicted_us']:.1f}", said["bound"]] if said else ["-", "-"]
        ratio = f"{us / said['predicted_us']:.2f}" if said and us else "-"
        check = ours.check if ours else "ours does not run"
        rows.append([*place, *cells, *foretold, ratio, "; ".join(others), check])
    columns = ("op", "size", "dtype", "mode", "us", "of a copy", "predicted us", "by", "measured over predicted")
    words = [
        "Medians by CUDA events, the L2 cache flushed before each; others' in turns with ours. By: what the prediction",
        "says is busiest. Check: values and gradients against float64.",
    ]
    return [
        "## Times, and what was predicted",
        "",
        *words,
        "",
        markdown_table((*columns, "others us", "check"), rows, left=4),
    ]


def _answers(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    columns = ("name", "kept in", "batch", "first token s", "tokens/s", "tokens/s at most", "peak MB")
    names = ("name", "dtype", "batch", "first_token_s", "decode_tok_s", "floor_tok_s", "peak_mb")
    table = markdown_table(columns, ([row[name] for name in names] for row in rows), left=2)
    return ["## Whole answers", "", f"{rows[0]['new_tokens']} tokens of each text.", "", table]


def _configurations(trials: Sequence[Trial]) -> list[str]:
    if not trials:
        return []
    rows = [
        [trial.kernel, trial.dtype, trial.size, trial.configuration, f"{100 * trial.gain:.0f} %"]
        for trial in winners(trials)
    ]
    said = (
        f"{len(trials)} configurations were tried; {len(rows)} are quicker than the default by 3 % of the op and more."
    )
    kept = (
        "`configurations.json` has them; copied to `kernels/measured/`, under the name of the chip, it is for everyone."
    )
    table = markdown_table(("kernel", "dtype", "sizes", "configuration", "saves"), rows, left=4)
    return ["## Configurations", "", said, kept, *(["", table] if rows else [])]


def _notes(known: Known) -> list[str]:
    notes = [f"- {name}: {row['note']}" for name, step in known.items() for row in step["rows"] if "note" in row]
    return ["## Notes", "", *notes] if notes else []
