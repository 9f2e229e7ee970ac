"""What the command line cannot do, in one line that says what to do."""


class Failure(Exception):
    """Something on the way to the answer is broken or missing."""

    exit_code = 1


class Misuse(Failure):
    """The command itself has to be changed."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an error of a library, which may be pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
