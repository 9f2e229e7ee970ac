"""The picture that a command is asked for: known to be possible before the work, then written whole or not at all."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import Failure, Misuse


def check_picture(option: str, path: str, suffixes: Sequence[str], given: str, what: str) -> None:
    """Raise Misuse unless a file can be made at `path`, which `option` names; leaves nothing there.

    `given`: the file that the command reads, `what` that is.
    """
    output, wanted = Path(path), " or ".join(suffixes)
    if output.suffix.lower() not in suffixes:
        raise Misuse(f"{option} {path}: a file that ends in {wanted} is wanted")
    if not output.parent.is_dir():
        raise Misuse(f"{option} {path}: there is no directory {output.parent}; make it first")
    try:
        if output.exists() and not output.is_file():
            raise Misuse(f"{option} {path} is not a file; name a {wanted} file")
        if output.exists() and output.samefile(given):
            raise Misuse(f"{option} {path} is the {what} itself; name another file")
        probe = output.with_name(f".firebolt-{os.getpid()}.tmp")
        probe.touch(exist_ok=False)
        probe.unlink()
        if output.exists():
            output.open("r+b").close()
    except OSError as error:
        raise Misuse(f"{option} {path} cannot be written ({error.strerror}); name a place that can") from None


def write_picture(option: str, path: str, write: Callable[[Path], Any]) -> None:
    """`write` the file whole, under a temporary name first. Raises Failure where it cannot be written after all."""
    from .evaluate.files import write_whole

    try:
        write_whole(Path(path), write)
    except OSError as error:
        raise Failure(f"{option} {path} could not be written ({error.strerror}); name another place") from None
