"""Commands `firebolt eval NAME`, `eval all` and `eval score`: arguments checked, the work, its results shown."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import Misuse
from .evaluate.benchmarks import BENCHMARKS, IMAGE_BENCHMARKS
from .evaluate.items import Benchmark
from .evaluate.own import OWN
from .evaluation import COLUMNS, Examinee, Run, Shard, evaluate, results
from .files.reading import lines_of, parse_json
from .files.tables import markdown_table
from .files.writing import words, write_text
from .outputs import write_picture

ALL = "all"
KNOWN = {**BENCHMARKS, OWN.name: OWN}
VERSIONS = ("torch", "transformers", "firebolt-vl")


def evaluate_benchmark(
    name: str,
    source: str,
    out: str,
    shard: str | None,
    as_json: bool,
    model: dict[str, Any],
    videos: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Answer and score one benchmark, or all whose files are in the folder `source`.

    `model` are arguments of `Examinee`, with `videos` those of `VideoExaminee`, `options` of `evaluate`.
    """
    from .progress import progress_bar

    part, chosen, found = Shard.parse(shard) if shard else Shard(), _chosen(name, source), []
    if videos is None:
        examinee = Examinee(**model)
    else:
        from .video_evaluation import VideoExaminee

        path = Path(source)
        root = Path(videos["root"]) if videos["root"] else path if path.is_dir() else path.parent
        examinee = VideoExaminee(root, videos["frames"], **model)
    for benchmark, data in chosen:
        with progress_bar(benchmark.title) as progress:
            run = evaluate(benchmark, data, examinee, Path(out), shard=part, progress=progress, report=_say, **options)
        found.append(_concluded(run, part, results(run.benchmark, run.rows, run.bad)))
    _write_tables(found, Path(out), part)
    _show(found, as_json, single=name != ALL)


def evaluate_own_questions(
    file: str, out: str, shard: str | None, as_json: bool, worst_rows: int, model: dict[str, Any], **options: Any
) -> None:
    """Answer, score and ground a file of own questions; `worst_rows` of them are drawn."""
    from .own_evaluation import evaluate_own, worst
    from .progress import progress_bar

    part = Shard.parse(shard) if shard else Shard()
    examinee = Examinee(**model)
    with progress_bar(OWN.title) as progress:
        run, scores = evaluate_own(file, examinee, Path(out), shard=part, progress=progress, report=_say, **options)
    found = _concluded(run, part, scores)
    if worst_rows and run.rows:
        from .worst_picture import draw_worst

        picture = Path(out) / f"{part.named('own')}.worst.png"
        rows = worst(file, run, Path(out), worst_rows, part)
        write_picture("--out", str(picture), lambda unfinished: draw_worst(rows, unfinished))
        found["worst"] = str(picture)
    _write_tables([found], Path(out), part)
    _show([found], as_json, single=True)


def score_files(files: Sequence[str], as_json: bool) -> None:
    """Score files of predictions again; several of one benchmark are parts of it."""
    by_benchmark: dict[str, dict[str, dict]] = {}
    for file in files:
        for number, row in enumerate(_predictions(file), 1):
            name = row["by"].get("benchmark")
            if name not in KNOWN:
                raise Misuse(f"{file}:{number} is of benchmark {name!r}; expected one of {', '.join(KNOWN)}")
            rows, key = by_benchmark.setdefault(name, {}), json.dumps(row["id"])
            if key in rows and rows[key] != row:
                raise Misuse(f"{file}:{number} has id {key}, which another file answers too; give each part once")
            rows[key] = row
    _show([results(KNOWN[name], list(rows.values())) for name, rows in by_benchmark.items()], as_json, single=True)


def _predictions(file: str) -> list[dict]:
    try:
        rows = [parse_json(line) for line in lines_of(Path(file)) if line.strip()]
    except FileNotFoundError:
        raise Misuse(f"{file} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise Misuse(f"{file} is no file of predictions ({words(error)}); check the path") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not set(COLUMNS) <= set(row):
            raise Misuse(f"{file}:{number} is no prediction; expected the keys {', '.join(COLUMNS)}")
    if not rows:
        raise Misuse(f"{file} is empty; expected predictions")
    return rows


def _chosen(name: str, source: str) -> list[tuple[Benchmark, str]]:
    """The benchmarks to run, each with its data."""
    if name != ALL:
        if name not in BENCHMARKS:
            raise Misuse(f"NAME is {name}; expected one of {', '.join((*BENCHMARKS, ALL, 'own', 'tiny'))}")
        return [(BENCHMARKS[name], source)]
    folder = Path(source)
    if not folder.is_dir():
        raise Misuse(f"--data is {source}; expected, for all, a folder with one file or folder for each benchmark")
    found = []
    for one in IMAGE_BENCHMARKS:
        there = [path for path in sorted(folder.iterdir()) if path.name.split(".")[0].lower() == one.name]
        if len(there) > 1:
            raise Misuse(f"--data has {there[0].name} and {there[1].name} for {one.name}; keep one of them")
        found += [(one, str(path)) for path in there]
    if not found:
        names = ", ".join(one.name for one in IMAGE_BENCHMARKS)
        raise Misuse(f"--data is {source}, which has nothing for a benchmark; expected names such as {names}")
    return found


def _concluded(run: Run, part: Shard, found: dict[str, Any]) -> dict[str, Any]:
    """Results of a run and of what it was made with; written beside its predictions too."""
    by = run.rows[0]["by"] if run.rows else {}
    found |= {"checkpoint": by.get("checkpoint"), "digest": by.get("digest"), "dtype": by.get("dtype")}
    found |= {"answered_before": run.before, "images_encoded": run.images}
    found |= {"versions": _versions(), "commit": _commit(), "predictions": str(run.predictions)}
    write_text(run.predictions.with_name(f"{part.named(run.benchmark.name)}.json"), json.dumps(found, indent=1) + "\n")
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


def _write_tables(found: Sequence[dict], out: Path, part: Shard) -> None:
    """Write what was found as table.md and table.csv."""
    columns, rows = table(found)
    write_text(out / f"{part.named('table')}.md", markdown_table(columns, rows) + "\n")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(out / f"{part.named('table')}.csv", text.getvalue())


def table(found: Sequence[dict]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: one score a row."""
    columns = ["benchmark", "score of", "ours", "paper", "rows", "bad", "unparsed", "s a question", "dtype"]
    rows = []
    for one in found:
        benchmark = KNOWN[one["benchmark"]]
        facts = [one["rows"], one["bad_rows"], one["unparsed"], f"{one['seconds_a_question']:.3f}", one.get("dtype")]
        scores = scores_of(one) or {"not scored": one.get("not_scored", "")}
        for name, value in scores.items():
            theirs = benchmark.published.get(name)
            rows.append([benchmark.title, name, _number(value), _number(theirs), *map(_cell, facts)])
    return columns, rows


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


def _show(found: Sequence[dict], as_json: bool, single: bool) -> None:
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
