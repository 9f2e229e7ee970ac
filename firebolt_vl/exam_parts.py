"""An exam in several processes: each answers its shard, and whoever is done last scores all of them together."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import Misuse
from .evaluation import COLUMNS
from .exam_rows import WHOLE, Shard
from .files.writing import is_locked, turn_at
from .own_evaluation import ANOTHER, GROUNDED, OF_OTHER_IMAGES
from .ranks import this_rank
from .row_files import RowFile, Rows

# Files of rows beside NAME.json: what follows NAME, the columns, and what a row is.
OF_ROWS = (
    ("", ".predictions.jsonl", COLUMNS, "prediction"),
    (OF_OTHER_IMAGES, ".predictions.jsonl", COLUMNS, "prediction"),
    ("", ".grounding.jsonl", (*GROUNDED, "by"), "grounding"),
)


def examined(
    out: Path,
    shard: str | None,
    names: Sequence[str],
    by: dict,
    say: Callable[[str], None],
    work: Callable[[Shard, Callable[[str], None]], list[dict]],
) -> list[dict] | None:
    """Return what `work(shard, say)` does, which answers and scores a shard of the exams `names` into the folder `out`.

    One of several processes of a launcher takes the shard of its number. The last one that is done puts the rows of all
    parts, which the model `by` has to have given, into the files of the whole, and scores these; the others return
    None. Raises Misuse.
    """
    rank = this_rank()
    if rank.count == 1:
        return work(Shard.parse(shard) if shard else WHOLE, say)
    if shard:
        raise Misuse(
            f"--shard is {shard} in one of {rank.count} processes of a launcher, which are shards; leave it out"
        )
    part = Shard(rank.number + 1, rank.count)
    work(part, say)
    with turn_at(out / "parts"):
        if not all(_is_done(out, Shard(number + 1, rank.count), names) for number in range(rank.count)):
            say(f"part {part.number} of {part.count} is done; the others are not yet")
            return None
        for name in names:
            for ending, suffix, columns, what in OF_ROWS:
                _gather(out, rank.count, name + ending, suffix, columns, what, by, say)
        return work(WHOLE, lambda line: None)  # each part has told of its rows


def _is_done(out: Path, part: Shard, names: Sequence[str]) -> bool:
    """Tell whether a part has all its results and is not at work on others."""
    return all(
        (out / f"{part.named(name)}.json").exists() and not is_locked(out / f"{part.named(name)}.predictions.jsonl")
        for name in names
    )


def _gather(
    out: Path,
    count: int,
    stem: str,
    suffix: str,
    columns: Sequence[str],
    what: str,
    by: dict,
    say: Callable[[str], None],
) -> None:
    """Append what the parts of a file have and the whole lacks. Raises Misuse where something else gave it."""
    files = [out / f"{Shard(number + 1, count).named(stem)}{suffix}" for number in range(count)]
    parts = [Rows("--out", str(file), columns, what, ANOTHER).read() for file in files if file.exists()]
    if not parts:
        return
    with RowFile("--out", str(out / f"{stem}{suffix}"), [], say, columns, what, ANOTHER) as whole:
        for rows in (whole, *parts):
            rows.check_all_by(by)
        lines = {key: line for part in parts for key, line in part.lines.items() if key not in whole.rows}
        whole.append([line.decode() for line in lines.values()])
