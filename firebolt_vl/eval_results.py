"""Results of evaluation: in files beside the predictions, and in a table."""

import csv
import io
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import Misuse
from .evaluate.benchmarks import BENCHMARKS, SUBMITTED
from .evaluate.own import OWN
from .evaluation import Run, marked
from .exam_rows import Shard
from .files.reading import parse_json
from .files.tables import markdown_table
from .files.writing import OutputError, check_output, write_text
from .outputs import is_our_picture

KNOWN = {**BENCHMARKS, OWN.name: OWN}
SUBMISSION = ".submission.json"
ENDINGS = (SUBMISSION, ".json", ".md", ".csv", ".png")
VERSIONS = ("torch", "transformers", "firebolt-vl")
TABLE = (
    *("benchmark", "score of", "ours", "paper", "rows", "bad", "unparsed", "s a question", "dtype"),
    *("model", "versions", "commit"),
)
COMMIT = 12
"""Digits of a commit in a table."""
WORST = "own.worst"


def check_results(out: Path, part: Shard, benchmarks: Sequence[str]) -> None:
    """Check, before the work, that results will not be written over files of somebody else. Raises Misuse."""
    files: list[tuple[str, Callable[[Path], bool]]] = [(f"{name}.json", _is_result) for name in benchmarks]
    files += [(f"{name}{SUBMISSION}", _is_submission) for name in benchmarks]
    files += [("table.md", _is_table), ("table.csv", _is_table)]
    files += [(f"{WORST}.png", is_our_picture)] if OWN.name in benchmarks else []
    for name, is_ours in files:
        stem, suffix = next((name.removesuffix(end), end) for end in ENDINGS if name.endswith(end))
        try:
            check_output("--out", out / f"{part.named(stem)}{suffix}", ours=is_ours, hint="name another folder")
        except OutputError as error:
            raise Misuse(str(error)) from None


def _is_table(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(40).startswith((b"| benchmark | score of |", b"benchmark,score of,"))


def _is_submission(file: Path) -> bool:
    try:
        found = parse_json(file.read_bytes())
    except ValueError:
        return False
    return isinstance(found, list) and all(isinstance(one, dict) and set(one) == SUBMITTED for one in found)


def _is_result(file: Path) -> bool:
    try:
        found = parse_json(file.read_bytes())
    except ValueError:
        return False
    return isinstance(found, dict) and {"benchmark", "rows", "predictions"} <= set(found)


def concluded(run: Run, part: Shard, found: dict[str, Any]) -> dict[str, Any]:
    """Results of a run and of what it was made with; written beside its predictions too."""
    by = run.rows[0]["by"] if run.rows else {}
    found |= {"checkpoint": by.get("checkpoint"), "digest": by.get("digest"), "dtype": by.get("dtype")}
    found |= {"answered_before": run.before, "images_encoded": run.images}
    found |= {"versions": _versions(), "commit": _commit(), "predictions": str(run.predictions)}
    name = part.named(run.benchmark.name)
    if answers := run.benchmark.submission(marked(run.benchmark, run.rows)):
        file = run.predictions.with_name(f"{name}{SUBMISSION}")
        write_text(file, json.dumps(answers) + "\n")
        found["submission"] = str(file)
    write_text(run.predictions.with_name(f"{name}.json"), json.dumps(found, indent=1) + "\n")
    return found


def _versions() -> dict[str, str | None]:
    from .info import installed_versions

    versions = installed_versions()
    return {name: versions.get(name) for name in VERSIONS}


def _commit() -> str | None:
    """The commit of the checkout that this package runs from; None where it is none."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_tables(found: Sequence[dict], out: Path, part: Shard) -> None:
    """Write what was found as table.md and table.csv."""
    columns, rows = table(found)
    write_text(out / f"{part.named('table')}.md", markdown_table(columns, rows) + "\n")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(out / f"{part.named('table')}.csv", text.getvalue())


def table(found: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: one score a row."""
    rows = []
    for one in found:
        benchmark = KNOWN[one["benchmark"]]
        facts = [one["rows"], one["bad_rows"], one["unparsed"], f"{one['seconds_a_question']:.3f}", one.get("dtype")]
        versions = ", ".join(f"{name} {version}" for name, version in one.get("versions", {}).items())
        facts += [one.get("checkpoint"), versions, (one.get("commit") or "")[:COMMIT]]
        scores = scores_of(one) or {"not scored": one.get("not_scored", "")}
        for name, value in scores.items():
            theirs = benchmark.published.get(name)
            rows.append([benchmark.title, name, _number(value), _number(theirs), *map(_cell, facts)])
    return list(TABLE), rows


def scores_of(found: dict) -> dict[str, Any]:
    """The scores that a table shows, by their names: those of all rows, of each kind and of each grounding."""
    scores = {name: value for name, value in found.items() if name in SCORES}
    if "another_image" in found:
        scores["score, another image"] = found["another_image"]["score"]
    for kind, values in found.get("kinds", {}).items():
        scores[f"score, {kind}"], scores[f"majority, {kind}"] = values["score"], values["majority"]
    for method, values in found.get("grounding", {}).items():
        for name in ("pointing", "chance", "inside"):
            scores[f"{name} by {method}"] = values[name]
    return scores


SCORES = [
    "score",
    "loss_score",
    "harness_score",
    "vanilla",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "yes_ratio",
    "perception",
    "cognition",
    "word_f1",
    "anls",
    "vqa_accuracy",
    "majority",
]


SHOWN = 4
"""Columns of the table that a terminal shows: the others are the same in each row of a benchmark."""


def _number(value: Any) -> str:
    """A share in percent; points, and words, as they are."""
    if not isinstance(value, float | int):
        return "" if value is None else str(value)
    return f"{100 * value:.1f} %" if 0 <= value <= 1 else f"{value:.1f}"


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def show(found: Sequence[dict], as_json: bool, single: bool) -> None:
    if as_json:
        print(json.dumps(found[0] if single and len(found) == 1 else found))
        return
    from rich.table import Table

    from .shown import new_console

    columns, rows = table(found)
    shown = Table()
    for column in columns[:SHOWN]:
        shown.add_column(column, justify="left" if column in columns[:2] else "right")
    for row in rows:
        shown.add_row(*row[:SHOWN])
    console = new_console()
    console.print(shown)
    for one in found:
        facts = [f"{one['rows']} rows", f"{one['unparsed']} unparsed", f"{one['bad_rows']} bad"]
        facts += [f"{one['seconds_a_question']:.3f} s a question", one.get("dtype"), one.get("predictions")]
        console.print(f"{one['benchmark']}: {' · '.join(fact for fact in facts if fact)}")
