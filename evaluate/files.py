"""Results in files: whole, or not there."""

import csv
import errno
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

Row = TypeVar("Row")
BUSY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` to a temporary name beside `path`, then rename: nobody sees half a file, and a failure leaves the old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays the last part: it is what tells matplotlib the format.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def lock(file: BinaryIO) -> bool:
    """Take an open file for this process alone, until the process or the file ends, however that is.

    Returns False where there are no locks: on some network file systems, and on Windows. Raises BlockingIOError where
    another process has it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            raise BlockingIOError(error.errno, "another process has it") from None
        return False
    return True


def markdown_table(columns: Iterable[str], rows: Iterable[Iterable[Any]], left: int = 1) -> str:
    """A table whose first `left` columns are aligned to the left, the others to the right."""
    columns = list(columns)
    rule = ["---"] * left + ["---:"] * (len(columns) - left)
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in (columns, rule, *rows))


def csv_of(kind: type[Row], rows: Iterable[Row]) -> str:
    """Rows of a dataclass of numbers and texts, below the names of its fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(kind)])
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def rows_of_csv(kind: type[Row], text: str) -> list[Row]:
    """What `csv_of` undoes."""
    types = {field.name: field.type for field in fields(kind)}
    return [
        kind(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(io.StringIO(text))
    ]
