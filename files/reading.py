"""Text files of users: a byte-order mark says the encoding and is no part of the text; JSON fails in plain words."""

import codecs
import json
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

# UTF-32's little-endian mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LONGEST_MARK = 4


def encoding_of(beginning: bytes) -> str:
    """The encoding that the first bytes of a text say; UTF-8 where they say none."""
    return next((encoding for mark, encoding in MARKS if beginning.startswith(mark)), "utf-8")


def encoding_of_file(file: Path) -> str:
    with file.open("rb") as opened:
        return encoding_of(opened.read(LONGEST_MARK))


def decoded(data: bytes) -> str:
    """Text without its mark. Raises ValueError for bytes that are none."""
    encoding = encoding_of(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise ValueError(f"byte {error.start + 1} is 0x{data[error.start]:02x}, which is not {name}") from None


def read_text(file: Path) -> str:
    """Read a text file without its mark. Raises OSError, and ValueError for bytes that are no text."""
    return decoded(file.read_bytes())


def lines_of(file: Path) -> Iterator[bytes]:
    """The lines of a file as UTF-8, each without a mark (files put together have one in their middle), one at a time.

    Raises OSError, and ValueError where a mark promises an encoding that the file is not in.
    """
    with file.open("rb") as opened:
        encoding = encoding_of(opened.peek(LONGEST_MARK))
        if encoding in ("utf-8", "utf-8-sig"):
            yield from (line.removeprefix(codecs.BOM_UTF8) for line in opened)
        else:
            yield from (line.encode("utf-8", "replace") for line in TextIOWrapper(opened, encoding, newline="\n"))


def parse_json(text: str | bytes, pairs: Callable[[list], Any] | None = None) -> Any:
    """The value in a text of JSON. Raises ValueError; `pairs` is json's object_pairs_hook."""
    text = decoded(text) if isinstance(text, bytes) else text
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise ValueError(f"{error.msg} at {where}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
