"""Rows of data files as benchmarks are released: JSON lines, VLMEvalKit's tables, parquet and saved `datasets` folders.

A row is a dictionary of its columns. Images stay as they are in the file until they are wanted: `Cell`.
"""

import base64
import binascii
import csv
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.problems import BadRow
from ..files.reading import lines_of, parse_json
from ..files.writing import words
from .items import shown

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jsonl", ".tsv", ".parquet")
LONGEST_REFERENCE = 64
"""Characters of an `image` in VLMEvalKit's tables that names the row with the image instead."""
ROWS_AT_ONCE = 64


class DataError(ValueError):
    """Data that cannot be read at all, in one line."""


@dataclass(frozen=True)
class Cell:
    """An image in a data file."""

    path: Path | None = None
    data: bytes | None = None
    name: str = "the image"

    @property
    def key(self) -> str:
        """A name that no other image has."""
        return str(self.path) if self.data is None else hashlib.blake2b(self.data, digest_size=16).hexdigest()

    def open(self) -> "Image.Image":
        """Decode the image. Raises OSError and ValueError."""
        from ..model.images import decode_image, open_image

        return open_image(self.path) if self.data is None else decode_image(self.data, self.name)


@dataclass(frozen=True)
class Data:
    """The rows of a file, a folder or a data set of the hub."""

    name: str
    total: int
    read: Any
    """Called without arguments: the rows with their numbers from 1, or the BadRow that one is."""

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        return self.read()


def open_data(source: str, split: str, subset: str | None = None) -> Data:
    """Open the rows at a path, or of the data set with an id on the hub (ORG/NAME) where no such path is there.

    Of a folder and of the hub the rows of `split` are read, of the hub those of the configuration `subset`. Only an id
    reaches the network. Raises DataError.
    """
    path = Path(source)
    if not path.exists():
        if is_hub_id(source):
            return _from_hub(source, split, subset)
        raise DataError(f"{source} does not exist; expected a file, a folder, or the id ORG/NAME of a data set")
    try:
        if path.is_dir():
            return _folder(path, split)
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{source} ends in {path.suffix or 'nothing'}; expected one of {', '.join(SUFFIXES)}")
        return {".tsv": _table, ".parquet": _parquet}.get(path.suffix.lower(), _json_lines)(path)
    except (OSError, UnicodeError) as error:
        raise DataError(f"{source} cannot be read ({words(error)}); check the file") from None


def is_hub_id(source: str) -> bool:
    """Tell whether a source can only be meant as the id ORG/NAME of a data set on the hub."""
    path = Path(source)
    return not path.exists() and source.count("/") == 1 and not path.suffix and all(source.split("/"))


def _json_lines(path: Path) -> Data:
    folder = path.parent

    def row_of(line: bytes) -> Mapping[str, Any] | BadRow:
        if not line.strip():
            return BadRow("blank line", "expected a JSON object on each line")
        try:
            row = parse_json(line)
        except ValueError as error:
            return BadRow("broken JSON", str(error))
        if not isinstance(row, dict):
            return BadRow("not an object", f"it is {shown(row)}; expected {{...}}")
        return {name: _file(value, folder) if name.startswith("image") else value for name, value in row.items()}

    def read() -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        for number, line in enumerate(lines_of(path), 1):
            yield number, row_of(line)

    return Data(str(path), sum(1 for _ in lines_of(path)), read)


def _file(value: Any, folder: Path) -> Any:
    """The image at a path beside the file, or a list of them; what is none stays as it is."""
    if isinstance(value, list):
        return [_file(one, folder) for one in value]
    return Cell(folder / value, name=value) if isinstance(value, str) and value.strip() else value


def _table(path: Path) -> Data:
    """A table with tabs, as VLMEvalKit has it: images are base64, or the index of the row that has the image."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))

    def rows() -> Iterator[dict[str, Any]]:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            yield from csv.DictReader(opened, delimiter="\t")

    total, named = 0, set()
    try:
        for row in rows():
            total += 1
            if (name := row.get("image")) and len(name) <= LONGEST_REFERENCE:
                named.add(name)
    except csv.Error as error:
        raise DataError(f"{path} is no table ({error}); expected columns with tabs between them") from None
    images = {row["index"]: row["image"] for row in rows() if row.get("index") in named} if named else {}

    def row_of(row: dict[str, Any]) -> Mapping[str, Any] | BadRow:
        if None in row or None in row.values():
            return BadRow("cells", "it has more or fewer cells than the first line; expected one for each column")
        found = dict(row)
        if name := found.get("image"):
            text = images.get(name, "") if len(name) <= LONGEST_REFERENCE else name
            if not text:
                return BadRow("no image", f"image names row {name}, which is not there; expected a row with an image")
            try:
                found["image"] = Cell(data=base64.b64decode(text, validate=True), name="image")
            except (binascii.Error, ValueError):
                return BadRow("image is no base64", f"it begins with {text[:20]!r}; expected an image in base64")
        return found

    def read() -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        return ((number, row_of(row)) for number, row in enumerate(rows(), 1))

    return Data(str(path), total, read)


def _parquet(path: Path) -> Data:
    return _parquets([path], str(path))


def _parquets(paths: Iterable[Path], name: str) -> Data:
    parquet, arrow = _needed("pyarrow.parquet", "parquet"), _needed("pyarrow", "parquet")
    try:
        files = [parquet.ParquetFile(path) for path in paths]
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{name} is no whole parquet file ({str(error).splitlines()[0]}); download it again") from None

    def read() -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        number = 0
        for file in files:
            try:
                for batch in file.iter_batches(ROWS_AT_ONCE):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, _cells(row)
            except (arrow.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise DataError(f"{name} is damaged after row {number} ({reason}); download it again") from None

    return Data(name, sum(file.metadata.num_rows for file in files), read)


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose images, which `datasets` stores as {bytes, path}, are cells."""
    return {name: _stored(name, value) for name, value in row.items()}


def _stored(name: str, value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        if value["bytes"] is not None:
            return Cell(data=value["bytes"], name=name)
        return Cell(Path(value["path"]), name=value["path"]) if value["path"] else None
    if isinstance(value, bytes) and name.startswith("image"):
        return Cell(data=value, name=name)
    return value


def _folder(path: Path, split: str) -> Data:
    """A folder that `datasets` saved, or one of parquet files, whose names begin with their split."""
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        datasets = _needed("datasets", "saved data sets")
        try:
            return _from_datasets(datasets.load_from_disk(str(path)), str(path), split)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} cannot be read ({str(error).splitlines()[0]}); save it again") from None
    files = sorted(path.rglob("*.parquet"))
    chosen = [file for file in files if file.name.split("-")[0].split(".")[0] == split]
    if files and not chosen:
        splits = sorted({file.name.split("-")[0].split(".")[0] for file in files})
        raise DataError(f"{path} has no split {split}, but {', '.join(splits)}; name one of its files")
    if not chosen:
        raise DataError(f"{path} has neither parquet files nor a saved data set; expected one of them")
    return _parquets(chosen, str(path))


def _from_hub(source: str, split: str, subset: str | None) -> Data:
    datasets = _needed("datasets", "data sets of the hub")
    try:
        return _from_datasets(datasets.load_dataset(source, subset, split=split), source, split)
    except Exception as error:  # whatever the network, the hub and the scripts of others provoke
        raise DataError(f"{source} cannot be fetched ({str(error).splitlines()[0]}); give a local path") from None


def _from_datasets(found: Any, name: str, split: str) -> Data:
    if isinstance(found, Mapping):
        if split not in found:
            raise DataError(f"{name} has no split {split}, but {', '.join(found)}; save or name one of them")
        found = found[split]
    for column, feature in found.features.items():
        if hasattr(feature, "decode"):
            found = found.cast_column(column, type(feature)(decode=False))

    def read() -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        for number, row in enumerate(found, 1):
            yield number, _cells(row)

    return Data(name, len(found), read)


def _needed(module: str, what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        package = module.split(".")[0]
        raise DataError(f"{what} needs {package}, which is not installed; pip install 'firebolt-vl[eval]'") from None
