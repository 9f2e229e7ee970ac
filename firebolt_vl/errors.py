"""What the command line cannot do, in one line that says what to do."""


class Failure(Exception):
    """Something on the way to the answer is broken or missing."""

    exit_code = 1


class Misuse(Failure):
    """The command itself has to be changed."""

    exit_code = 2


MOST_CHARACTERS = 400


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def told(error: BaseException) -> str:
    """An error of a library in one line: all of it where it is short, since the reason often stands in the last."""
    if isinstance(error, KeyError):  # its text is the key alone
        return f"there is no {error}"
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = text or type(error).__name__
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
