"""Rows as text: tables of Markdown, and CSV that can be read back."""

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import Any, TypeVar

Row = TypeVar("Row")


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
    """Undo `csv_of`."""
    types = {field.name: field.type for field in fields(kind)}
    return [
        kind(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(io.StringIO(text))
    ]
