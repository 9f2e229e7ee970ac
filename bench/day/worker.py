"""The process that does the steps: it can be killed with all that it started, and a GPU that it upset dies with it."""

import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from typing import Any

from .steps import SCALES, Step


class Worker:
    """A process that is started when a step is to be done, and again after one that had to be broken off."""

    def __init__(self, scale: str):
        self.scale = scale
        self.process, self.pipe = None, None

    def do(self, step: Step, seconds: float, keep: Callable[[dict[str, Any]], None]) -> str:
        """Do a step, `keep` its rows as they come, and say what went wrong: "" if nothing did."""
        if self.process is None or not self.process.is_alive():
            self._start()
        end = time.monotonic() + seconds
        try:
            self.pipe.send(step)
            while self.pipe.poll(max(0.0, end - time.monotonic())):
                kind, content = self.pipe.recv()
                if kind == "done":
                    return content
                keep(content)
        except (EOFError, OSError):
            self.stop()
            return "the process that did it died"
        self.stop()
        return f"it was broken off after {seconds:.0f} s"

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.scale))
        self.process.start()
        other.close()

    def stop(self) -> None:
        """End the process and all that it started."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has no group of its own yet, or is gone
            self.process.kill()
        self.process.join()
        self.pipe.close()
        self.process = None


def _serve(pipe: Connection, scale: str) -> None:
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from .work import WORK

    while True:
        step: Step = pipe.recv()
        problem = ""
        try:
            for row in WORK[step.kind](step.argument, SCALES[scale]):
                pipe.send(("row", row))
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no message"]
            problem = f"{type(error).__name__}: {lines[-1]}"
        pipe.send(("done", problem))


def _end_with_parent() -> None:
    """However the parent ends: nobody would read what is done from then on."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
