"""Ctrl-C during a training: once lets the step at hand end, twice stops at once."""

import os
import signal
import threading
from contextlib import AbstractContextManager, contextmanager

SAID = b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n"


class Interrupts:
    """Context in the main thread, whose `asked` says whether Ctrl-C was pressed.

    With `listens` False, and where Ctrl-C was ignored before (nohup), all stays as it is.
    """

    def __init__(self, listens: bool):
        self.listens = listens and threading.current_thread() is threading.main_thread()
        self.asked = False

    def __enter__(self) -> "Interrupts":
        self.before = signal.getsignal(signal.SIGINT)
        self.listens = self.listens and self.before is signal.default_int_handler
        if self.listens:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self.listens:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, *_) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, SAID)  # print() cannot be called from within itself


def interrupts_held() -> AbstractContextManager:
    """Ctrl-C comes when this ends; processes that are started within never get it."""
    return _masked("SIG_BLOCK")


def interrupts_heard() -> AbstractContextManager:
    """Let Ctrl-C through, also one from before, in a process that was started with interrupts held."""
    return _masked("SIG_UNBLOCK")


@contextmanager
def _masked(how: str):
    """Change by `how`, a name of the signal module, whether Ctrl-C is held; after it all is as before."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(getattr(signal, how), {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_interrupts(*_) -> None:
    """Ignore Ctrl-C in processes that only help: they end with the one that they help."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
