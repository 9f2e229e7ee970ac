"""Questions of a benchmark as a model is asked them, and answers as they are scored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..files.problems import BadRow

Row = Mapping[str, Any]
"""A row of a data file: column -> value."""
LIKE_IMAGE = ("image", "img", "picture", "photo", "video")
"""In lower case: what a key for an image is spelt like by those who mean `image`."""


class Item(NamedTuple):
    """One question."""

    id: str | int | None
    """None where the row has none: its number stands for it."""
    question: str
    """The whole prompt, with options and the benchmark's own instruction."""
    images: tuple[Any, ...]
    """Cells of images, in their order: a path, bytes, base64, or what `datasets` makes of a column of images."""
    wanted: Any
    """The truth, as JSON holds it; None where a split keeps it to itself."""
    about: dict[str, Any]
    """What else the score needs of the row, as JSON holds it."""
    video: str | None = None
    bare: str = ""
    """The question alone, of those with `options`."""
    options: tuple[str, ...] = ()
    """What is scored where a model chooses by the lowest mean cross-entropy."""


class Mark(NamedTuple):
    """Worth of an answer."""

    parsed: Any
    """What the answer was taken for; None where it could not be understood."""
    score: float
    """From 0 to 1."""


class Marked(NamedTuple):
    """An answer with its mark."""

    id: str | int
    wanted: Any
    about: dict[str, Any]
    got: str
    mark: Mark


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what its rows hold, what a model is asked, how an answer is marked, what the scores are."""

    name: str
    title: str
    hub: str
    """The id of its data set on the hub, as lmms-eval has it."""
    split: str
    columns: tuple[str, ...]
    """Those that every row needs."""
    read: Callable[[Row], Item]
    """Raises BadRow, and KeyError for a column."""
    mark: Callable[[str, Any, dict[str, Any]], Mark]
    """Called with the answer, `Item.wanted` and `Item.about`."""
    scores: Callable[[Sequence[Marked]], dict[str, Any]]
    """The benchmark's scores by its own names, those of groups as dictionaries."""
    subset: str | None = None
    """The configuration of the data set."""
    main: str = "score"
    """The name of the score that is compared first."""
    submission: Callable[[Sequence[Marked]], list[dict[str, Any]]] = lambda marked: []
    """The answers as a server that keeps the truth takes them; none where the truth is known."""
    published: dict[str, float] = field(default_factory=dict)
    """Scores that the paper of Firebolt-VL reports, by their names."""


def numbered(item: Item, number: int) -> Item:
    """The item with its row's number for an id, if it has none."""
    return item if item.id is not None else item._replace(id=number)


def no_column(row: Row, column: str) -> BadRow:
    """Complaint about a row that lacks a column."""
    return BadRow(f"no column {column}", f"the columns are {', '.join(row) or 'none'}")


def text_of(row: Row, column: str) -> str:
    """A text in a row. Raises BadRow where it is none."""
    value = row[column]
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{column} is no text", f"it is {shown(value)}; expected a text with words")
    return value


def whole(row: Row, column: str) -> int:
    """A whole number in a row, or in its text. Raises BadRow where it is none."""
    value = row[column]
    try:
        number = int(value)
        if isinstance(value, bool) or number != float(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadRow(f"{column} is no number", f"it is {shown(value)}; expected a whole number") from None
    return number


def texts_of(row: Row, column: str) -> list[str]:
    """A list of texts in a row. Raises BadRow where it is none or empty."""
    value = row[column]
    values = list(value) if isinstance(value, (list, tuple)) else []
    if not values or not all(isinstance(one, str) for one in values):
        raise BadRow(f"{column} are no texts", f"it is {shown(value)}; expected a list of texts")
    return values


def image_of(row: Row, column: str = "image") -> tuple[Any, ...]:
    """The image in a row. Raises BadRow where there is none."""
    if absent(row[column]):
        raise BadRow(f"no {column}", f"it is {shown(row[column])}; expected an image")
    return (row[column],)


def meant_for_image(row: Row) -> str | None:
    """The key of a row without `image` that looks like another spelling of it; None where there is none."""
    if "image" in row:
        return None
    return next((key for key in row if any(like in key.lower() for like in LIKE_IMAGE)), None)


def absent(value: Any) -> bool:
    """Tell whether a cell is empty: None, a text without letters, or the NaN of a table."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
