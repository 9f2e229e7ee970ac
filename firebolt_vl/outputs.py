"""Pictures and folders that commands write: known to be possible before the work, then whole or not there at all."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import Failure, Misuse
from .files.writing import OutputError, check_output, followed, words, write_whole
from .version import __version__

# Stands in every picture's comment: by it a later run knows that it may be replaced.
WRITTEN_BY = "written by firebolt-vl"
SIGNATURE = f"{WRITTEN_BY} {__version__}"


def check_picture(
    option: str, path: str, suffixes: Sequence[str], given: str, what: str, overwrite: bool = False
) -> None:
    """Raise Misuse unless a file can be made at `path`, which `option` names; leaves nothing there.

    `given`: the file that the command reads, `what` that is. A file that is there is replaced where it is a picture of
    this package, or with `overwrite`.
    """
    check_suffix(option, path, suffixes)
    check_place(option, path)
    allow_overwriting(option, path, [(f"the {what}", given)], is_our_picture, overwrite)
    output = followed(path)
    try:
        probe = output.with_name(f".firebolt-{os.getpid()}.tmp")
        probe.touch(exist_ok=False)
        probe.unlink()
        if output.exists():
            output.open("r+b").close()
    except OSError as error:
        raise Misuse(f"{option} is {path}, which cannot be written ({words(error)}); name another place") from None


def check_suffix(option: str, path: str, suffixes: Sequence[str]) -> None:
    """Check that a file's name ends in one of the suffixes. Raises Misuse."""
    if Path(path).suffix.lower() not in suffixes:
        raise Misuse(f"{option} is {path}; expected a file that ends in {' or '.join(suffixes)}")


def check_place(option: str, path: str) -> None:
    """Check that the folder of a file that is to be written exists, also behind a link. Raises Misuse."""
    for folder in (Path(path).parent, followed(path).parent):
        if not folder.is_dir():
            raise Misuse(f"{option} is {path}, but the folder {folder} does not exist; make it first")


@contextmanager
def new_folder(name: str, out: str) -> Iterator[Path]:
    """A region in which a new folder is filled under a temporary name; at its end it is `out`, or after an error gone.

    Raises Misuse, before anything is made, unless `out`, which the argument `name` gives, can be a new folder.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Misuse(f"{name} is {out}, which exists already; name a new folder")
    check_place(name, out)
    unfinished = target.absolute().with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir()
        yield unfinished
        if target.is_dir():
            target.rmdir()  # Windows renames over nothing, and POSIX over an empty folder alone
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def allow_overwriting(
    option: str, path: str | Path, inputs, ours: Callable[[Path], bool] = lambda file: False, overwrite: bool = False
) -> None:
    """`check_output` for a command that has --overwrite. Raises Misuse."""
    try:
        check_output(option, path, inputs, ours, overwrite, "name another file, or say --overwrite")
    except OutputError as error:
        raise Misuse(str(error)) from None


def is_our_picture(file: Path) -> bool:
    with file.open("rb") as opened:
        return WRITTEN_BY.encode() in opened.read(4096)


def write_picture(option: str, path: str, write: Callable[[Path], Any]) -> None:
    """`write` the file whole, under a temporary name first. Raises Failure where it cannot be written after all."""
    try:
        write_whole(Path(path), write)
    except OSError as error:
        raise Failure(f"{option} is {path}, which could not be written ({words(error)}); name another place") from None
