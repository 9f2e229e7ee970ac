"""One row of a data file: a conversation about no, one or several images (docs/training.md), or a video.

    {"image": "photos/1.jpg", "conversations": [{"from": "human", "value": ...}, {"from": "assistant", "value": ...}]}

`image` may be a list, or null or absent for text alone; `video` may stand in its place. The human begins, the two take
turns, and the assistant ends. For training on preferences `rejected` is a worse last answer; otherwise it is left
alone, as other keys (an id, a source) are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from ...files.reading import decoded, parse_json
from .problems import BadRow

HUMAN, ASSISTANT = "human", "assistant"
ROLES = (HUMAN, ASSISTANT)


@dataclass(frozen=True)
class Turn:
    role: str
    text: str


@dataclass(frozen=True)
class Row:
    images: tuple[str, ...]
    turns: tuple[Turn, ...]
    video: str | None = None
    rejected: object = None
    """What stands there, whatever it is: `rejected_row` looks at it."""

    @property
    def size(self) -> int:
        """Bytes of its text: at least as many as tokens of a byte-level tokenizer."""
        return sum(len(turn.text.encode()) for turn in self.turns)


def parse_row(line: bytes) -> Row:
    """The row in a line of JSON. Raises BadRow."""
    if not line.strip():
        raise BadRow("blank line", "a JSON object is wanted on each line")
    try:
        text = decoded(line)
    except ValueError as error:
        raise BadRow("not UTF-8", str(error)) from None
    try:
        value = parse_json(text, _object)
    except ValueError as error:
        raise BadRow("broken JSON", str(error)) from None
    return check_row(value)


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRow("key twice", f"{twice!r} stands in one object more than once")
    return found


def check_row(value: object) -> Row:
    """The row in what JSON held. Raises BadRow."""
    if not isinstance(value, dict):
        raise BadRow("not an object", f"{_named(value)} came, {{...}} is wanted")
    images, video = _images(value.get("image")), _video(value.get("video"))
    if images and video is not None:
        raise BadRow("image and video", "a row has one of both")
    return Row(images, _turns(value), video, value.get("rejected"))


def rejected_row(row: Row) -> Row:
    """The same conversation with the rejected answer in the place of the last one. Raises BadRow."""
    if row.rejected is None:
        raise BadRow("no rejected answer", "preferences are learned from rows with `rejected` beside the conversation")
    if not isinstance(row.rejected, str):
        raise BadRow("rejected is no text", f"{_named(row.rejected)} came, a text is wanted")
    if not row.rejected.strip():
        raise BadRow("empty rejected answer", "`rejected` holds no words")
    if row.rejected == row.turns[-1].text:
        raise BadRow("rejected is chosen", "`rejected` is the very answer that it stands beside")
    _check_unicode(row.rejected, "`rejected`")
    return replace(row, turns=(*row.turns[:-1], Turn(ASSISTANT, row.rejected)))


def _images(value: object) -> tuple[str, ...]:
    images = [] if value is None else value if isinstance(value, list) else [value]
    for image in images:
        if not isinstance(image, str):
            raise BadRow("image is no path", f"{_named(image)} came, a path, a list of paths or null is wanted")
        _check_path("image", image)
    return tuple(images)


def _video(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRow("video is no path", f"{_named(value)} came, a path or null is wanted")
    _check_path("video", value)
    return value


def _check_path(what: str, path: str) -> None:
    if not path.strip():
        raise BadRow(f"empty {what} path", f"leave `{what}` away, or null, where a row has none")
    if path.startswith(("http://", "https://", "data:")):
        raise BadRow(f"{what} is an address", f"{path[:60]}; download the {what}s and give their paths")
    if "\x00" in path:
        raise BadRow(f"{what} is no path", "a path with a NUL character came")
    _check_unicode(path, f"the {what}'s path")


def _turns(row: dict) -> tuple[Turn, ...]:
    if "conversations" not in row:
        raise BadRow("no conversations", f"the keys are {', '.join(map(repr, row)) or 'none'}")
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise BadRow("conversations are no list", f"{_named(turns)} came, a list of turns is wanted")
    if not turns:
        raise BadRow("empty conversations", "at least a question and an answer are wanted")
    checked = tuple(_turn(number, turn) for number, turn in enumerate(turns, start=1))
    if checked[0].role != HUMAN:
        raise BadRow("assistant begins", "the first turn has to be the human's")
    for number, (before, after) in enumerate(pairwise(checked), start=2):
        if before.role == after.role:
            raise BadRow(f"{after.role} twice", f"turns {number - 1} and {number} are both the {after.role}'s")
    if checked[-1].role != ASSISTANT:
        raise BadRow("no answer", "the last turn has to be the assistant's")
    return checked


def _turn(number: int, turn: object) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow("turn is no object", f"turn {number} is {_named(turn)}")
    for key in ("from", "value"):
        if key not in turn:
            raise BadRow(f"turn without {key}", f"turn {number} has {', '.join(map(repr, turn)) or 'no keys'}")
    role, text = turn["from"], turn["value"]
    if role not in ROLES:
        raise BadRow("unknown role", f"turn {number} is from {role!r}; {' or '.join(map(repr, ROLES))} is wanted")
    if not isinstance(text, str):
        raise BadRow("value is no text", f"turn {number} holds {_named(text)}")
    if not text.strip():
        raise BadRow("empty answer" if role == ASSISTANT else "empty question", f"turn {number} holds no words")
    _check_unicode(text, f"turn {number}")
    return Turn(role, text)


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("half a character", f"{where} holds the lone surrogate U+{ord(text[error.start]):04X}") from None


def _named(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def check_controls(row: Row, controls: Iterable[str]) -> None:
    """Raises BadRow where a text holds one of the tokens that tell turns apart: it would forge another turn."""
    for number, turn in enumerate(row.turns, start=1):
        for control in controls:
            if control in turn.text:
                raise BadRow("control token in the text", f"turn {number} holds {control!r}")
