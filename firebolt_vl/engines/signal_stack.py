"""The stack on which a thread handles its signals, kept as it was while a library puts its own in its place."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux's stack_t (man 2 sigaltstack)."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put this thread's stack for signals back at the end.

    OpenVINO (2026.4) gives the thread that compiles a model a stack for signals, which goes with the model; of two
    models the one that goes last puts back that of the one before it. If that one is gone, the next signal, a Ctrl-C,
    ends the process without a word. With the thread's own stack in place they leave it alone.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    known = libc.sigaltstack(None, ctypes.byref(before)) == 0
    try:
        yield
    finally:
        if known:
            libc.sigaltstack(ctypes.byref(before), None)
