"""Commands `firebolt eval NAME`, `eval all` and `eval score`: arguments checked, the work, its results shown."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import Misuse
from .eval_results import KNOWN, WORST, check_results, concluded, show, write_tables
from .evaluate.benchmarks import BENCHMARKS, IMAGE_BENCHMARKS
from .evaluate.items import Benchmark
from .evaluate.own import OWN
from .evaluate.rows import SUFFIXES
from .evaluation import COLUMNS, Examinee, evaluate, results
from .exam_parts import examined
from .exam_rows import WHOLE, Shard
from .files.reading import lines_of, parse_json
from .files.writing import words
from .outputs import write_picture
from .ranks import this_rank

ALL = "all"


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

    chosen = _chosen(name, source)
    names = [benchmark.name for benchmark, _ in chosen]
    check_results(Path(out), Shard.parse(shard) if shard else WHOLE, names)
    if videos is None:
        examinee = Examinee(**model)
    else:
        from .video_evaluation import VideoExaminee, root_of

        examinee = VideoExaminee(root_of(videos["root"], source), videos["frames"], **model)

    def work(part: Shard, say: Callable[[str], None]) -> list[dict]:
        found = []
        for benchmark, data in chosen:
            with progress_bar(benchmark.title, this_rank().leads) as progress:
                how = {"shard": part, "progress": progress, "report": say, **options}
                run = evaluate(benchmark, data, examinee, Path(out), **how)
            found.append(concluded(run, part, results(run.benchmark, run.rows, run.bad)))
        write_tables(found, Path(out), part)
        return found

    found = examined(Path(out), shard, names, examinee.by, _say, work)
    if found is not None:
        show(found, as_json, single=name != ALL)


def evaluate_own_questions(
    file: str, out: str, shard: str | None, as_json: bool, worst_rows: int, model: dict[str, Any], **options: Any
) -> None:
    """Answer, score and ground a file of own questions; `worst_rows` of them are drawn."""
    from .own_evaluation import evaluate_own, worst
    from .progress import progress_bar

    check_results(Path(out), Shard.parse(shard) if shard else WHOLE, [OWN.name])
    examinee = Examinee(**model)

    def work(part: Shard, say: Callable[[str], None]) -> list[dict]:
        with progress_bar(OWN.title, this_rank().leads) as progress:
            how = {"shard": part, "progress": progress, "report": say, **options}
            run, scores = evaluate_own(file, examinee, Path(out), **how)
        found = concluded(run, part, scores)
        if worst_rows and run.rows:
            from .worst_picture import draw_worst

            picture = Path(out) / f"{part.named(WORST)}.png"
            rows = worst(file, run, Path(out), worst_rows, part)
            write_picture("--out", str(picture), lambda unfinished: draw_worst(rows, unfinished))
            found["worst"] = str(picture)
        write_tables([found], Path(out), part)
        return [found]

    found = examined(Path(out), shard, [OWN.name], examinee.by, _say, work)
    if found is not None:
        show(found, as_json, single=True)


def _named(path: Path) -> str:
    """The benchmark that a file or folder is called by; nothing for what holds no rows."""
    if path.is_dir():
        return path.name
    if path.suffix.lower() not in SUFFIXES or path.stem.endswith((".predictions", ".grounding")):
        return ""
    return path.name.split(".")[0]


def score_files(files: Sequence[str], as_json: bool) -> None:
    """Score files of predictions again; several of one benchmark are parts of it."""
    by_benchmark: dict[str, dict[str, dict]] = {}
    makers: dict[str, dict] = {}
    for file in files:
        for number, row in enumerate(_predictions(file), 1):
            name = row["by"].get("benchmark")
            if name not in KNOWN:
                raise Misuse(f"{file}:{number} is of benchmark {name!r}; expected one of {', '.join(KNOWN)}")
            rows, key = by_benchmark.setdefault(name, {}), json.dumps(row["id"])
            if key in rows and rows[key] != row:
                raise Misuse(f"{file}:{number} has id {key}, which another file answers too; give each part once")
            by = makers.setdefault(name, row["by"])
            if differ := [key for key in by if key != "checkpoint" and by[key] != row["by"].get(key)]:
                raise Misuse(
                    f"{file}:{number} was answered with {differ[0]} {json.dumps(row['by'].get(differ[0]))}, other rows "
                    f"with {json.dumps(by[differ[0]])}; score one model at a time"
                )
            rows[key] = row
    for missing in _missing_parts(files):
        _say(f"{missing} is not among the files: the scores are those of the others")
    show([results(KNOWN[name], list(rows.values())) for name, rows in by_benchmark.items()], as_json, single=True)


def _predictions(file: str) -> list[dict]:
    """The rows of a file of predictions. Raises Misuse."""
    rows: list[dict] = []
    try:
        lines = list(lines_of(Path(file)))
    except FileNotFoundError:
        raise Misuse(f"{file} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        raise Misuse(f"{file} is no file of predictions ({words(error)}); check the path") from None
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
        except ValueError:
            if rows and number == len(lines) and not line.endswith(b"\n"):
                raise Misuse(
                    f"{file}:{number} is cut off, as a stopped run leaves it; finish that run (the same command goes "
                    "on), or remove the line"
                ) from None
            row = None
        if not isinstance(row, dict) or not set(COLUMNS) <= set(row) or not isinstance(row["by"], dict):
            raise Misuse(f"{file}:{number} is no prediction; expected a file that `firebolt eval` wrote")
        rows.append(row)
    if not rows:
        raise Misuse(f"{file} is empty; expected predictions")
    return rows


def _missing_parts(files: Sequence[str]) -> list[str]:
    """Names of the parts of shards that are not among the files."""
    missing, there = [], {Path(file).name for file in files}
    for name in sorted(there):
        if found := re.fullmatch(r"(.+)\.\d+-of-(\d+)(\.predictions\.jsonl)", name):
            stem, count, ending = found.groups()
            missing += [f"{stem}.{i}-of-{count}{ending}" for i in range(1, int(count) + 1)]
    return [name for name in dict.fromkeys(missing) if name not in there]


def _chosen(name: str, source: str) -> list[tuple[Benchmark, str]]:
    """The benchmarks to run, each with its data."""
    if name != ALL:
        if name not in BENCHMARKS:
            raise Misuse(f"NAME is {name}; expected one of {', '.join((*BENCHMARKS, ALL, 'own', 'screens', 'tiny'))}")
        return [(BENCHMARKS[name], source)]
    folder = Path(source)
    if not folder.is_dir():
        raise Misuse(f"--data is {source}; expected, for all, a folder with one file or folder for each benchmark")
    found = []
    for one in IMAGE_BENCHMARKS:
        there = [path for path in sorted(folder.iterdir()) if _named(path).lower() == one.name]
        if len(there) > 1:
            raise Misuse(f"--data has {there[0].name} and {there[1].name} for {one.name}; keep one of them")
        found += [(one, str(path)) for path in there]
    if not found:
        names = ", ".join(one.name for one in IMAGE_BENCHMARKS)
        raise Misuse(f"--data is {source}, which has nothing for a benchmark; expected names such as {names}")
    return found


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
