"""The queue before the model, and the one thread that works on it, a batch at a time."""

import sys
import threading
import traceback
from collections import deque

from .engine import Engine
from .refusal import Refused
from .row import Row

CLOSING = "this server is being stopped"


class Desk:
    """Rows that wait for the model, in the order in which they came.

    A batch is what waits when the model is free, at most `batch_size` rows: nothing waits for a batch to fill.
    """

    def __init__(self, engine: Engine, batch_size: int):
        self.engine, self.batch_size = engine, batch_size
        self.rows: deque[Row] = deque()
        self.batch: list[Row] = []
        self.changed, self.closed = threading.Condition(), False
        self.thread = threading.Thread(target=self._work, name="firebolt-model", daemon=True)

    def start(self) -> None:
        self.thread.start()

    @property
    def alive(self) -> bool:
        return self.thread.is_alive() and not self.closed

    @property
    def waiting(self) -> int:
        return len(self.rows)

    def submit(self, row: Row) -> None:
        """Let a row wait for its turn. Raises Refused where there will be none."""
        with self.changed:
            if not self.alive:
                raise Refused(503, CLOSING, "closing", retry_after=10)
            self.rows.append(row)
            self.changed.notify()

    def close(self, seconds: float) -> bool:
        """End all rows and the thread; return whether it ended within so many seconds."""
        with self.changed:
            self.closed = True
            for row in (*self.rows, *self.batch):
                row.cancelled = True
            self.changed.notify()
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def _work(self) -> None:
        while batch := self._next():
            try:
                self.engine.answer(batch)
            except Exception:  # a fault of ours: these rows are lost, the others are not
                traceback.print_exc(file=sys.stderr)
                for row in batch:
                    if not row.over:
                        row.fail(Refused(500, "the server failed; its log says why", "internal_error"))

    def _next(self) -> list[Row]:
        """The next batch, once there is one; none where the desk is closed."""
        with self.changed:
            self.batch = []
            while not self.closed:
                self.rows = deque(row for row in self.rows if not row.over)
                if self.rows:
                    self.batch = self._taken()
                    return self.batch
                self.changed.wait()
        return []

    def _taken(self) -> list[Row]:
        """Take the first row that waits, and those after it that fit to it."""
        batch, left = [self.rows.popleft()], deque[Row]()
        while self.rows and len(batch) < self.batch_size:
            row = self.rows.popleft()
            (batch if self.engine.together(batch, row) else left).append(row)
        self.rows = left + self.rows
        return batch
