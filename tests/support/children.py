"""Processes that share what is imported, to be killed or kept from writing."""

import os
from collections.abc import Callable

BROKEN = 70


def in_child(work: Callable[[], int], before: Callable[[], None] = lambda: None) -> int:
    """Call `before` and then `work` in a silent process of its own, which ends with what `work` returns; its id.

    An exception ends it with BROKEN.
    """
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        before()
        code = work()
    finally:
        os._exit(code)


def status_of(child: int) -> int:
    """The exit code, once it has ended, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
