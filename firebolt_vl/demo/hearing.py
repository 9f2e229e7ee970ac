"""An answer's pieces on their way from the thread that runs the model to a visitor who may be gone by then."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from threading import Event
from typing import NamedTuple, TypeVar

from ..evidence import word_spans
from ..streaming import SpokenText

Made = TypeVar("Made")


class Stopped(Exception):
    """The visitor does not wait for the answer any more."""


class Piece(NamedTuple):
    """Piece of an answer: its text, and the answer's tokens first..after-1 that it was made of."""

    text: str
    first: int
    after: int


class Heard(SpokenText):
    """The text of an answer as its tokens come: `hear` gets every piece, and an empty text at every token, where it may
    raise Stopped."""

    def __init__(self, processor, hear: Callable[[str], None]):
        super().__init__(processor, self._keep)
        self.hear = hear
        self.pieces: list[Piece] = []

    def put(self, token: int) -> None:
        self.hear("")
        super().put(token)

    def _keep(self, text: str) -> None:
        self.pieces.append(Piece(text, self.context, self.said))
        self.hear(text)

    def words(self, answer: str) -> list[tuple[int, int, int, int]]:
        """Return the words of the answer, answer[start:end], with the tokens first..after-1 that each is made of."""
        if "".join(piece.text for piece in self.pieces) != answer:
            return []
        found, begins = [], 0
        placed = []
        for piece in self.pieces:
            placed.append((begins, begins + len(piece.text), piece))
            begins += len(piece.text)
        for start, end in word_spans(answer):
            parts = [piece for begin, stop, piece in placed if begin < end and stop > start]
            found.append((start, end, parts[0].first, parts[-1].after))
        return found


def follow(worker: ThreadPoolExecutor, work: Callable[[Callable[[str], None]], Made]) -> Generator[str, None, Made]:
    """Run `work` on the worker, yield what it has said so far whenever there is more, and return what it made.

    `work` gets a function that it calls with each piece of text. Once this generator is closed, that raises Stopped.
    """
    pieces: SimpleQueue[str | None] = SimpleQueue()
    gone = Event()

    def hear(piece: str) -> None:
        if gone.is_set():
            raise Stopped
        if piece:
            pieces.put(piece)

    running = worker.submit(work, hear)
    running.add_done_callback(lambda _: pieces.put(None))
    said, over = "", False
    try:
        while not over:
            new = [pieces.get()]
            while True:  # what came in the meantime goes along
                try:
                    new.append(pieces.get_nowait())
                except Empty:
                    break
            over = new[-1] is None
            if text := "".join(piece for piece in new if piece):
                said += text
                yield said
    finally:
        gone.set()
        running.cancel()
    return running.result()
