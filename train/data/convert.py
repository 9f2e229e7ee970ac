"""Converters of CC3M, LLaVA-CoT and MMPR v1.2, as they are released, to JSON lines (rows.py).

Each converter yields rows, or a BadRow for what cannot be one; nothing is downloaded, and images stay where they are.
Text is UTF-8, or what a byte-order mark says.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from ...files.problems import BadRow, Problem, Problems
from ...files.reading import decoded, encoding_of_file, lines_of, parse_json, read_text
from ...files.writing import OutputError, check_output, followed, same_file, write_whole
from .dataset import write_row
from .pictures import SHARD, images_of, read_member, samples

# CC3M has captions alone; a chat needs a question.
CAPTION_QUESTION = "Describe the image."
TSV_IMAGES = "GCC_train_{line:09d}.jpg"
IMAGE_TOKEN = re.compile(r"[ \t]*<image>[ \t]*\n?")
LLAVA_ROLES = {"human": "human", "user": "human", "gpt": "assistant", "assistant": "assistant"}

# place, row
Rows = Iterator[tuple[str, dict | BadRow]]


def cc3m(file: Path, out: Path, images: Path, pattern: str = TSV_IMAGES) -> Rows:
    """CC3M: Train_GCC-training.tsv (caption, tab, address; with or without a header) or a tar shard of img2dataset.

    Of the table, the image of line L (from 0, the header not counted) is `images` / `pattern` with {line} filled in: by
    default the names of LLaVA's CC3M archive. Lines whose image was not downloaded are bad rows. Of a shard (KEY.jpg,
    KEY.txt, KEY.json) the caption is KEY.txt, else "caption" of KEY.json.
    """
    if file.suffix == SHARD:
        yield from _cc3m_shard(file, out)
        return
    line = 0
    with file.open(encoding=encoding_of_file(file), errors="surrogateescape", newline="\n") as table:
        for number, text in enumerate(table, start=1):
            cells = text.rstrip("\r\n").split("\t")
            if number == 1 and cells in (["caption", "url"], ["url", "caption"]):
                continue
            image = images / pattern.format(line=line)
            line += 1
            if len(cells) != 2:
                yield str(number), BadRow("not caption and address", f"it has {len(cells)} columns; expected 2")
            elif not image.is_file():
                yield str(number), BadRow("missing image", f"{image} does not exist")
            else:
                yield str(number), _captioned(_relative(image, out), cells[0])


def _cc3m_shard(shard: Path, out: Path) -> Rows:
    for key, files in samples(shard):
        try:
            found = images_of(files)
        except BadRow as error:
            yield key, error
            continue
        if len(found) != 1:
            yield key, BadRow("missing in shard", f"{shard} holds {len(found) or 'no'} images {key}; expected 1")
            continue
        [image] = found
        try:
            if ".txt" in files:
                caption = decoded(read_member(shard, files[".txt"]))
            elif ".json" in files:
                caption = parse_json(read_member(shard, files[".json"])).get("caption")
            else:
                caption = None
        except (OSError, ValueError, AttributeError) as error:
            yield key, BadRow("broken caption", str(error))
            continue
        yield key, _captioned(f"{_relative(shard, out)}/{image.name}", caption)


def _captioned(image: str, caption: str | None) -> dict | BadRow:
    if not isinstance(caption, str) or not caption.strip():
        return BadRow("empty answer", "there is no caption")
    return _row([image], [("human", CAPTION_QUESTION), ("assistant", caption.strip())])


def llava_cot(file: Path, out: Path, images: Path) -> Rows:
    """LLaVA-CoT-100k's train.jsonl: {"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, ...]}.

    The four stages of its answers (<SUMMARY>, <CAPTION>, <REASONING>, <CONCLUSION>) are kept as they are. A file with
    one JSON list of such objects (LLaVA's other releases) is taken too.
    """
    for place, value in _objects(file):
        if isinstance(value, BadRow):
            yield place, value
            continue
        turns = value.get("conversations")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            yield place, BadRow("no conversations", "expected a list of turns")
            continue
        named = [(LLAVA_ROLES.get(turn.get("from"), turn.get("from")), turn.get("value")) for turn in turns]
        yield place, _row(_images(value.get("image"), images, out), named)


def mmpr(file: Path, out: Path, images: Path) -> Rows:
    """MMPR v1.2: meta.json ({name: {"root", "annotation", ...}}) or one of its annotations, JSON lines of
    {"image" (a path, a list, or absent), "question", "chosen", "rejected"}.

    The chosen answer becomes the assistant's; a preference pair's rejected answer is kept under "rejected", which
    training on answers leaves alone. Paths of meta.json start at its folder, or at the one above it.
    """
    if file.suffix != ".json":
        for place, value in _objects(file):
            yield place, value if isinstance(value, BadRow) else _preferred(value, images, out)
        return
    for name, part in parse_json(read_text(file)).items():
        annotation, root = (_below(file.parent, part[key]) for key in ("annotation", "root"))
        if annotation is None:
            yield name, BadRow("missing annotation", f"{part['annotation']} does not exist")
            continue
        if same_file(annotation, out):
            raise OutputError(f"OUT is {out}, one of the annotations that {file} names; name another file")
        for place, value in _objects(annotation):
            row = value if isinstance(value, BadRow) else _preferred(value, root or images, out)
            yield f"{part['annotation']}:{place}", row


def _below(folder: Path, path: str) -> Path | None:
    return next((place / path for place in (folder, folder.parent) if (place / path).exists()), None)


def _preferred(value: dict, images: Path, out: Path) -> dict | BadRow:
    row = _row(
        _images(value.get("image"), images, out), [("human", value.get("question")), ("assistant", value.get("chosen"))]
    )
    if isinstance(row, dict) and isinstance(value.get("rejected"), str):
        row["rejected"] = value["rejected"]
    return row


def _objects(file: Path) -> Iterator[tuple[str, dict | BadRow]]:
    """The objects of a file of JSON lines, or of one JSON list."""
    lines = lines_of(file)
    first = next((line for line in lines if line.strip()), b"")
    lines.close()
    if first.lstrip().startswith(b"["):
        for number, value in enumerate(parse_json(read_text(file)), start=1):
            yield str(number), value if isinstance(value, dict) else BadRow("not an object", "expected {...}")
        return
    for number, line in enumerate(lines_of(file), start=1):
        try:
            value = parse_json(line)
        except ValueError as error:
            yield str(number), BadRow("broken JSON", str(error))
            continue
        yield str(number), value if isinstance(value, dict) else BadRow("not an object", "expected {...}")


def _images(value, folder: Path, out: Path) -> list:
    named = [] if value in (None, "", []) else value if isinstance(value, list) else [value]
    return [_relative(folder / image, out) if isinstance(image, str) else image for image in named]


def _row(images: list, turns: list[tuple[str, str]]) -> dict:
    """The words <image> that stand for images are taken out: here no token does."""
    row = {"image": images[0] if len(images) == 1 else images} if images else {}
    said = [
        {"from": role, "value": IMAGE_TOKEN.sub("", text).strip() if isinstance(text, str) else text}
        for role, text in turns
    ]
    return {**row, "conversations": said}


def _relative(path: Path, out: Path) -> str:
    """The path as the file in `out`'s folder names it."""
    return (_relative_folder(path.parent, out) / path.name).as_posix()


@lru_cache(maxsize=4096)
def _relative_folder(folder: Path, out: Path) -> Path:
    """A folder as seen from `out`'s: a relative path where it leads to the same place, through links and all.

    Where `out` is a link into another folder no relative path serves both names of the file: it is absolute then.
    """
    whole = followed(folder)
    if followed(out).parent != followed(out.parent):
        return whole
    try:
        plain = Path(os.path.relpath(folder, out.parent))
        if followed(followed(out.parent) / plain) == whole:
            return plain
        return Path(os.path.relpath(whole, followed(out.parent)))
    except ValueError:  # another drive
        return whole


FORMATS: dict[str, Callable[..., Rows]] = {"cc3m": cc3m, "llava-cot": llava_cot, "mmpr": mmpr}


def convert(
    name: str,
    file: Path,
    out: Path,
    images: Path,
    *,
    report: Callable[[Problem], None] = lambda problem: None,
    **options,
) -> Problems:
    """Write the rows of `file`, which is in one of FORMATS, to `out`; returns the rows that could not be converted.

    `out` is replaced whole, and only where a row could be converted: else what is there stays. A link is followed.

    Raises ValueError for an unknown format and where `out` is what is read; OSError, ValueError or tarfile.TarError
    where the file cannot be read.
    """
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; expected one of {', '.join(FORMATS)}")
    check_output("OUT", out, [("the file that is converted", file)], overwrite=True)
    problems = Problems()

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="strict") as target:
            for place, row in FORMATS[name](file, out, images, **options):
                problems.rows += 1
                try:
                    if isinstance(row, BadRow):
                        raise row
                    target.write(write_row(row))
                except BadRow as error:
                    problem = Problem(str(file), place, error.kind, error.message)
                    problems.add(problem)
                    report(problem)
        if problems.rows == len(problems):
            raise _NothingToKeep

    with suppress(_NothingToKeep):
        write_whole(out, write)
    return problems


class _NothingToKeep(Exception):
    """No row could be converted."""


READ_ERRORS = (OSError, ValueError, tarfile.TarError)
