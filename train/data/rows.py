"""One row of a data file: a conversation about no, one or several images (docs/training.md), or a video.

    {"image": "photos/1.jpg", "conversations": [{"from": "human", "value": ...}, {"from": "assistant", "value": ...}]}

`image` may be a list, or null or absent for text alone; `video` may stand in its place. The human begins, the two take
turns, and the assistant ends. For training on preferences `rejected` is a worse last answer; for training on rewards
`solution`, `reward` and `box` say what is right (post/goals.py); otherwise they are left alone, as other keys (an id, a
source) are. Where a row has a `solution` the assistant's last turn may be left out: it is the first solution.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from ...files.problems import BadRow
from ...files.reading import decoded, parse_json

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
    solution: object = None
    reward: object = None
    box: object = None
    """Likewise, for what looks at rewards."""

    @property
    def pictures(self) -> int:
        """Number of its images, a video being one."""
        return len(self.images) + (self.video is not None)

    @property
    def size(self) -> int:
        """Bytes of its text: at least as many as tokens of a byte-level tokenizer."""
        return sum(len(turn.text.encode()) for turn in self.turns)


def parse_row(line: bytes) -> Row:
    """The row in a line of JSON. Raises BadRow."""
    if not line.strip():
        raise BadRow("blank line", "expected a JSON object on each line")
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
        raise BadRow("not an object", f"it is {_named(value)}; expected {{...}}")
    images, video = _images(value.get("image")), _video(value.get("video"))
    if images and video is not None:
        raise BadRow("image and video", "both are given; expected one of them")
    return Row(images, _turns(value), video, *(value.get(name) for name in ("rejected", "solution", "reward", "box")))


def rejected_row(row: Row) -> Row:
    """The same conversation with the rejected answer in the place of the last one. Raises BadRow."""
    if row.rejected is None:
        raise BadRow(
            "no rejected answer", "expected `rejected` beside the conversation, which preferences are learned from"
        )
    if not isinstance(row.rejected, str):
        raise BadRow("rejected is no text", f"it is {_named(row.rejected)}; expected a text")
    if not row.rejected.strip():
        raise BadRow("empty rejected answer", "`rejected` has no words; expected some")
    if row.rejected == row.turns[-1].text:
        raise BadRow("rejected is chosen", "`rejected` is the last answer itself; expected another")
    _check_unicode(row.rejected, "`rejected`")
    return replace(row, turns=(*row.turns[:-1], Turn(ASSISTANT, row.rejected)))


def solutions_of(value: object) -> tuple[str, ...]:
    """The solutions in what stands there, a text, a number or a list of them; none in None. Raises BadRow."""
    given = [] if value is None else value if isinstance(value, list) else [value]
    found = tuple(str(one) if isinstance(one, int | float) and not isinstance(one, bool) else one for one in given)
    for one in found:
        if not isinstance(one, str):
            raise BadRow("solution is no text", f"it is {_named(one)}; expected a text, or a list of texts")
        if not one.strip():
            raise BadRow("empty solution", "`solution` has no words; expected some")
        _check_unicode(one, "`solution`")
    return found


def _images(value: object) -> tuple[str, ...]:
    images = [] if value is None else value if isinstance(value, list) else [value]
    for image in images:
        if not isinstance(image, str):
            raise BadRow("image is no path", f"it is {_named(image)}; expected a path, a list of paths or null")
        _check_path("image", image)
    return tuple(images)


def _video(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRow("video is no path", f"it is {_named(value)}; expected a path or null")
    _check_path("video", value)
    return value


def _check_path(what: str, path: str) -> None:
    if not path.strip():
        raise BadRow(f"empty {what} path", f"expected a path; leave `{what}` out, or null, where a row has none")
    if path.startswith(("http://", "https://", "data:")):
        raise BadRow(f"{what} is an address", f"{path[:60]}; download the {what}s and give their paths")
    if "\x00" in path:
        raise BadRow(f"{what} is no path", "it has a NUL character; expected none")
    _check_unicode(path, f"the {what}'s path")


def _turns(row: dict) -> tuple[Turn, ...]:
    if "conversations" not in row:
        keys = ", ".join(map(repr, row)) or "none"
        raise BadRow("no conversations", f"the keys are {keys}; expected 'conversations' among them")
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise BadRow("conversations are no list", f"they are {_named(turns)}; expected a list of turns")
    if not turns:
        raise BadRow("empty conversations", "expected at least a question and an answer")
    checked = tuple(_turn(number, turn) for number, turn in enumerate(turns, start=1))
    if checked[-1].role == HUMAN and (solutions := solutions_of(row.get("solution"))):
        checked = (*checked, Turn(ASSISTANT, solutions[0]))
    if checked[0].role != HUMAN:
        raise BadRow("assistant begins", "expected the human's turn first")
    for number, (before, after) in enumerate(pairwise(checked), start=2):
        if before.role == after.role:
            raise BadRow(
                f"{after.role} twice",
                f"turns {number - 1} and {number} are both the {after.role}'s; expected one of each",
            )
    if checked[-1].role != ASSISTANT:
        raise BadRow("no answer", "expected the assistant's turn last")
    return checked


def _turn(number: int, turn: object) -> Turn:
    if not isinstance(turn, dict):
        raise BadRow("turn is no object", f"turn {number} is {_named(turn)}; expected {{...}}")
    for key in ("from", "value"):
        if key not in turn:
            keys = ", ".join(map(repr, turn)) or "no keys"
            raise BadRow(f"turn without {key}", f"turn {number} has {keys}; expected 'from' and 'value'")
    role, text = turn["from"], turn["value"]
    if role not in ROLES:
        raise BadRow("unknown role", f"turn {number} is from {role!r}; expected {' or '.join(map(repr, ROLES))}")
    if not isinstance(text, str):
        raise BadRow("value is no text", f"turn {number} is {_named(text)}; expected a text")
    if not text.strip():
        raise BadRow("empty answer" if role == ASSISTANT else "empty question", f"turn {number} has no words")
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
    """Check that no text holds a token that separates turns, since it would forge another turn. Raises BadRow."""
    for number, turn in enumerate(row.turns, start=1):
        for control in controls:
            if control in turn.text:
                raise BadRow("control token in the text", f"turn {number} holds {control!r}")
