"""Errors of the command line: each is one line, `argument is VALUE; expected WHAT` or what to do."""

import errno

# What a disk says, whichever file it is about, and what helps.
DISK = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "files may not grow that large here (ulimit -f)",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "get permission, or name another place",
    errno.EPERM: "get permission, or name another place",
    errno.EIO: "the disk or its connection fails; copy what is there elsewhere",
}


class Failure(Exception):
    """Something on the way to the answer is broken or missing."""

    exit_code = 1


class Misuse(Failure):
    """The command itself has to be changed."""

    exit_code = 2


class Interrupted(Failure):
    """The user stopped the command; what is kept, and how to go on."""

    exit_code = 130


MOST_CHARACTERS = 400


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def disk_failure(error: OSError) -> Failure | None:
    """An error of the system as a failure in plain words; None where it is not one of a disk that we know."""
    if error.errno not in DISK:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return Failure(f"{place}{error.strerror}; {DISK[error.errno]}, and start the command again")


def told(error: BaseException) -> str:
    """An error of a library in one line: all of it where it is short, since the reason often stands in the last."""
    if isinstance(error, KeyError):  # its text is the key alone
        return f"the key {error} is missing"
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = text or type(error).__name__
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
