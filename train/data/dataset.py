"""The rows of data files, each found once at the start and read again when its turn comes."""

import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from transformers import PreTrainedTokenizerBase

from ...files.problems import BadRow, Problem, Problems
from ...files.reading import encoding_of_file, parse_json
from ...model.video import Video
from .chat import Chat, Tokens
from .pictures import SHARD, Pictures, images_of, read_member, samples
from .rows import Row, check_row, parse_row, rejected_row


class Place(NamedTuple):
    """Place of a row: `start` and `size` in bytes of its file, and a checksum of these bytes, by which it is known
    again; `name` is the line, or the sample's key."""

    name: str
    start: int
    size: int
    check: int


@dataclass(frozen=True)
class Example:
    """One row, ready to be put into a batch."""

    tokens: Tokens
    images: Sequence[Image.Image | Video]
    """Of a video what `read_video` gives: its frames, or one Video."""
    rejected: Tokens | None = None
    """The conversation with the rejected answer, where preferences are learned."""
    is_video: bool = False


class Lines:
    """A file of JSON lines; paths of images start at `root`, by default at the file's folder."""

    def __init__(self, file: Path, root: Path | None = None):
        self.file = file
        self.pictures = Pictures(root or file.parent)

    def places(self) -> Iterator[tuple[Place, bytes]]:
        start = 0
        with self.file.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield Place(str(number), start, len(line), zlib.crc32(line)), line
                start += len(line)

    def read(self, place: Place) -> bytes:
        with self.file.open("rb") as file:
            file.seek(place.start)
            return file.read(place.size)

    def row(self, place: Place, data: bytes) -> Row:
        return parse_row(data)


class Shard:
    """A webdataset-like tar shard: of a sample KEY.json, a row, and, if that has no `image`, KEY.jpg (or so)."""

    def __init__(self, file: Path):
        self.file = file
        self.pictures = Pictures(file.parent)
        self.samples = dict(samples(file))

    def places(self) -> Iterator[tuple[Place, bytes]]:
        for key, files in self.samples.items():
            row = files.get(".json")
            place = Place(key, row.start if row else 0, row.size if row else 0, 0)
            data = self.read(place)
            yield place._replace(check=zlib.crc32(data)), data

    def read(self, place: Place) -> bytes:
        """The row; nothing where there is none, or it cannot be read."""
        row = self.samples[place.name].get(".json")
        try:
            return read_member(self.file, row) if row else b""
        except OSError:
            return b""

    def row(self, place: Place, data: bytes) -> Row:
        files = self.samples[place.name]
        if ".json" not in files:
            raise BadRow("sample without JSON", f"{place.name} has only {', '.join(files)}; expected .json too")
        if files[".json"].link is not None:
            raise BadRow(
                "sample without JSON", f"{place.name}.json is a link to {files['.json'].link}; expected a file"
            )
        row = parse_row(data)
        if row.images or row.video is not None or "image" in parse_json(data):
            return row
        return replace(row, images=tuple(f"{self.file.name}/{image.name}" for image in images_of(files)))


def open_source(file: Path, root: Path | None) -> Lines | Shard:
    """Open a data file. Raises ValueError where it does not exist, is not UTF-8, or, named .tar, is no tar archive."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; check the path")
    if file.suffix != SHARD:
        try:
            encoding = encoding_of_file(file)
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error.strerror}); check the path") from None
        if not encoding.startswith("utf-8"):
            raise ValueError(f"{file} is {encoding.upper()} text, by its byte-order mark; save it as UTF-8")
        return Lines(file, root)
    try:
        return Shard(file)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file} is not a tar shard that can be read ({error}); save it without compression") from None


class Conversations:
    """The good rows of some files; `dataset[i]` reads, tokenises and opens row i.

    Every row is parsed and checked once, here; images are looked for but not decoded (`check_images` decodes them too).
    What is bad is told to `report` and counted in `problems`. Raises TooManyBadRows where more than `max_bad_share` of
    the rows are bad; a row that turns out bad when it is read (a damaged image) raises BadRow.

    read_video     gives a video's file as a model sees it, its frames or one Video, and raises ValueError; None: rows
                   with a video are bad ones
    preferences    every row has a rejected answer, which is tokenised too
    image_words    what stands in front of a question, once for each image or video, where a model puts them in its
                   place
    check          looks at each row, and raises BadRow for one that cannot be used
    """

    def __init__(
        self,
        files: Sequence[Path],
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        image_root: Path | None = None,
        max_length: int | None = None,
        max_bad_share: float = 0.01,
        check_images: bool = False,
        read_video: Callable[[Path], Sequence[Image.Image | Video]] | None = None,
        preferences: bool = False,
        image_words: str = "",
        check: Callable[[Row], object] = lambda row: None,
        report: Callable[[Problem], None] = lambda problem: None,
    ):
        self.sources = [open_source(Path(file), image_root) for file in files]
        self.chat = Chat(tokenizer, max_length, image_words) if tokenizer is not None else None
        self.read_video = read_video
        self.preferences = preferences
        self.max_bad_share = max_bad_share
        self.problems = Problems()
        self.report = report
        names, where, sizes = [], [], []
        for number, source in enumerate(self.sources):
            for place, data in source.places():
                self.problems.rows += 1
                try:
                    row = source.row(place, data)
                    check(row)
                    texts = [row, rejected_row(row)] if preferences else [row]
                    length = max(self.chat.check(text) if self.chat else text.size for text in texts)
                    for image in row.images:
                        source.pictures.open(image) if check_images else source.pictures.check(image)
                    if row.video is not None:
                        self._video(source, row.video, opened=check_images)
                except BadRow as error:
                    self._note(Problem(str(source.file), place.name, error.kind, error.message))
                    continue
                names.append(place.name if isinstance(source, Shard) else "")
                line = int(place.name) if isinstance(source, Lines) else 0
                where.append((number, place.start, place.size, place.check, line))
                sizes.append(length)
        if not self.problems.rows:
            raise ValueError(
                f"{', '.join(str(source.file) for source in self.sources)} has no rows; expected at least one"
            )
        self.problems.check(max_bad_share)
        # Numbers and not objects: millions of rows are a few dozen megabytes.
        self._where = np.array(where, dtype=np.int64).reshape(-1, 5)
        self._names = names if any(names) else None
        self.sizes = np.array(sizes, dtype=np.int64)
        """A bound of each row's length, by which rows are put together."""

    def _note(self, problem: Problem) -> None:
        if self.problems.add(problem):
            self.report(problem)

    def note(self, problem: Problem) -> None:
        """Count a row that turned out bad later on. Raises TooManyBadRows."""
        self._note(problem)
        self.problems.check(self.max_bad_share)

    def __len__(self) -> int:
        return len(self.sizes)

    def _located(self, index: int) -> tuple[Lines | Shard, Place]:
        number, start, size, check, line = (int(value) for value in self._where[index])
        name = str(line) if line else self._names[index]
        return self.sources[number], Place(name, start, size, check)

    def row(self, index: int) -> Row:
        """Read a row. Raises BadRow where the file has changed at its place since it was looked through."""
        source, place = self._located(index)
        data = source.read(place)
        if zlib.crc32(data) != place.check:
            raise BadRow("changed file", "the row is not the one that was there when the files were looked through")
        return source.row(place, data)

    def problem(self, index: int, error: BadRow) -> Problem:
        source, place = self._located(index)
        return Problem(str(source.file), place.name, error.kind, error.message)

    def __getitem__(self, index: int) -> Example:
        source, _ = self._located(index)
        row = self.row(index)
        rejected = self.chat(rejected_row(row)) if self.preferences else None
        if row.video is not None:
            return Example(self.chat(row), self._video(source, row.video), rejected, is_video=True)
        return Example(self.chat(row), [source.pictures.open(image) for image in row.images], rejected)

    def _video(self, source: Lines | Shard, path: str, opened: bool = True) -> Sequence[Image.Image | Video]:
        """Its frames; none unless it is to be opened."""
        file = source.pictures.video(path)
        if self.read_video is None:
            raise BadRow("row with a video", f"it is {path}; expected images, which this model looks at")
        if not opened:
            return []
        try:
            return self.read_video(file)
        except (ValueError, OSError) as error:  # VideoError is one
            raise BadRow("unreadable video", str(error)) from None


def write_row(row: dict) -> str:
    """One line of a data file. Raises BadRow for what no reader would take."""
    check_row(row)
    return json.dumps(row, ensure_ascii=False) + "\n"
