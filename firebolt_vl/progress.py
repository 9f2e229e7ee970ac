"""A bar that says how far long work has come."""

from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .ranks import this_rank


@contextmanager
def progress_bar(what: str):
    """A function (done, total) that moves a bar on stderr, where there is a terminal: time passed, and time to go.

    Of several processes of a launcher the first of each machine shows its own.
    """
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not (console.is_terminal and this_rank().leads)
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
