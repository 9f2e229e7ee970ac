"""Progress of a run: a bar with loss, tokens a second and the time left, or lines where there is no terminal."""

import time
from collections import deque

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .loop import Told

WINDOW = 50


class Speed:
    """Tokens a second over the last steps."""

    def __init__(self):
        self.seen: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, tokens: float) -> float | None:
        """None before there are two steps to measure between."""
        self.seen.append((time.perf_counter(), tokens))
        spent = self.seen[-1][0] - self.seen[0][0]
        return sum(tokens for _, tokens in list(self.seen)[1:]) / spent if spent else None


class Shown:
    """A bar on stderr; use it as a context, and as `report` of a loop."""

    def __init__(self, title: str, log_every: int, shown: bool = True):
        self.console = Console(stderr=True)
        self.log_every = log_every
        self.shown = shown
        self.speed = Speed()
        columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        disabled = not shown or not self.console.is_terminal
        self.bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, disable=disabled)
        self.task = None

    def __enter__(self) -> "Shown":
        self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        self.bar.stop()

    def __call__(self, told: Told) -> None:
        rate = self.speed.add(told.measured.get("tokens", 0))
        note = f"loss {told.measured['loss']:.4f}" + (f", {rate:,.0f} tokens/s" if rate else "")
        if self.task is None:
            self.task = self.bar.add_task("", total=told.steps, note=note, start=True)
        self.bar.update(self.task, completed=told.step, note=note)
        if "perplexity" in told.measured:
            note += f", validation perplexity {told.measured['perplexity']:.4f}"
        if "skipped" in told.measured:
            note += f"; skipped, loss or gradient is not finite ({told.measured['skipped']} so far)"
        # A bar is overwritten; that a step was skipped stays.
        notable = "perplexity" in told.measured or told.step % self.log_every == 0
        if self.shown and ("skipped" in told.measured or (notable and not self.console.is_terminal)):
            self.console.print(f"step {told.step} of {told.steps}: {note}", soft_wrap=True)
