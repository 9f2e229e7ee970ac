"""Results in files: whole, or not there; never over what is read, nor over what is somebody else's."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# A temporary name: this, random digits, the suffix of the file to come.
TEMPORARY, DIGITS = ".firebolt-", 12
BUSY = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


class OutputError(ValueError):
    """A file that cannot be written, or must not be written over; one line that says what to do."""


def check_output(
    name: str,
    path: str | Path,
    inputs: Iterable[tuple[str, str | Path]] = (),
    ours: Callable[[Path], bool] = lambda file: False,
    overwrite: bool = False,
    hint: str = "name another file",
) -> None:
    """Raise OutputError where writing the file `path`, which the argument `name` gives, would destroy something.

    Links are followed: what counts is the file that the name leads to. It must be none of `inputs` (what it is, path)
    by whatever name, hard links included; and what is there already must be an empty file, or one that this package
    wrote, as `ours` can tell, unless `overwrite` asks for it. `hint` says what to do about somebody else's file.
    """
    said = f"{name} is {path}"
    target = followed(path)
    try:
        found = target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    except (OSError, ValueError) as error:
        raise OutputError(f"{said}, which cannot be written ({words(error)}); name another place") from None
    for what, given in inputs:
        if (found is not None and same_file(target, given)) or target == followed(given):
            raise OutputError(f"{said}, {what} itself; name another file")
    if found is None:
        return
    if stat.S_ISLNK(found.st_mode):
        raise OutputError(f"{said}, a link that leads in a circle; name another file")
    if not stat.S_ISREG(found.st_mode):
        raise OutputError(f"{said}, a folder or a device; expected a file")
    try:
        if found.st_size and not overwrite and not ours(target):
            raise OutputError(f"{said}, which exists already and was not written by this command; {hint}")
    except OSError as error:
        raise OutputError(f"{said}, which cannot be read ({words(error)}); {hint}") from None


def followed(path: str | Path) -> Path:
    """The file that a name leads to, links followed, whether or not it is there yet."""
    return Path(os.path.realpath(path))


def same_file(one: str | Path, other: str | Path | int) -> bool:
    """Tell whether both names (or a name and an open file's number) lead to one file that exists."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def words(error: Exception) -> str:
    """Return the system's words for an error, without its number and the path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` to a temporary name beside `path`, then rename: nobody sees half a file, and a failure leaves the old.

    A link stays one: the file that it leads to is replaced, which keeps its mode. Other names of that file, hard links,
    keep what was there.
    """
    path = followed(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays the last part: it is what tells matplotlib the format.
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(DIGITS // 2)}{path.suffix}")
    try:
        # A name of its own, which no other process has, with the mode that new files get.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        write(temporary)
        if path.exists():
            temporary.chmod(stat.S_IMODE(path.stat().st_mode))
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())  # a rename that outlives a crash must not outlive the content
        temporary.replace(path)
    except OSError as error:
        if error.filename == str(temporary) or (error.filename is None and error.errno in FULL):
            error.filename = str(path)  # the name that was asked for
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what `write_whole` had begun in a folder when it was killed; for a process that has the folder alone."""
    begun = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{{DIGITS}}}(\.[^.]+)?")
    for file in folder.iterdir():
        if begun.fullmatch(file.name) and file.is_file():
            file.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def lock(file: BinaryIO, wait: bool = False) -> bool:
    """Take an open file for this process alone, until the process or the file ends, however that is.

    Returns False where there are no locks: on some network file systems, and on Windows. Raises BlockingIOError where
    another process has it, unless this one shall `wait`.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in BUSY and not wait:
            raise BlockingIOError(error.errno, "another process has it") from None
        return False
    return True


def is_locked(path: Path) -> bool:
    """Tell whether another process has a file for itself; where there are no locks nobody knows, and it has not."""
    try:
        with path.open("r+b") as file:
            lock(file)
    except BlockingIOError:
        return True
    except OSError:  # it is not there, or not ours to write
        return False
    return False


@contextmanager
def turn_at(path: Path) -> Iterator[None]:
    """A region in which one process at a time is, of those that name the same file; where there are no locks, any.

    The lock is a file beside it, which is gone afterwards.
    """
    gate = path.with_name(f".{path.name}.turn")
    while True:
        file = gate.open("ab")
        # Whoever was there before took the file away: who waited for that one's end holds nothing.
        if not lock(file, wait=True) or same_file(gate, file.fileno()):
            break
        file.close()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open elsewhere
            gate.unlink(missing_ok=True)
        file.close()
