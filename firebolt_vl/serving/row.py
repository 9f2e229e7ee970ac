"""One answer while it is made: its tokens, its text as it grows, and why it ends."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..streaming import SpokenText
from .refusal import Refused
from .stopping import UntilStop

if TYPE_CHECKING:
    from .sampling import Sampler
    from .sight import Picture


class Prepared(NamedTuple):
    """A request as the model takes it.

    prompt      tokens of the whole conversation
    pictures    its images, in their order
    most        tokens that the answer may have
    sampler     None for the most likely answer
    doubts      what is unlike that which the model was made for; None where it does not say
    """

    prompt: list[int]
    pictures: "list[Picture]"
    most: int
    sampler: "Sampler | None"
    stop: tuple[str, ...]
    doubts: list[str] | None


class Ended(NamedTuple):
    """The end of an answer: "stop" where the model or a stop of the client's ended it, "length" where it was cut."""

    reason: str
    text: str
    tokens: int
    probability: float
    """The geometric mean over the answer's tokens of the probability that each was chosen with."""


Event = str | Ended | Refused


class Row:
    """An answer in the making. `tell` is told each piece of its text, and then how it ended, by the model's thread."""

    def __init__(self, asked: Prepared, processor, tell: Callable[[Event], None]):
        self.asked, self.processor, self.tell = asked, processor, tell
        self.cancelled = self.done = False
        self._begin()

    def _begin(self) -> None:
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.certainty = 0.0
        self.until = UntilStop(self.asked.stop, self._say)
        self.spoken = SpokenText(self.processor, self.until.put)

    @property
    def over(self) -> bool:
        """Return whether no more of its tokens are wanted."""
        return self.done or self.cancelled

    @property
    def begun(self) -> bool:
        """Return whether the client has been told anything."""
        return bool(self.pieces)

    def put(self, token: int, log_probability: float, ends: Sequence[int]) -> None:
        """Take the next token."""
        self.tokens.append(token)
        self.certainty += log_probability
        self.spoken.put(token)
        if token in ends or self.until.found:
            self.end("stop")
        elif len(self.tokens) >= self.asked.most:
            self.end("length")

    def end(self, reason: str) -> None:
        self.spoken.end()
        self.until.end()
        whole = self.processor.decode(self.tokens, skip_special_tokens=True).strip()
        text = "".join(self.pieces) if self.until.found else whole
        self.done = True
        count = len(self.tokens)
        self.tell(Ended("stop" if self.until.found else reason, text, count, math.exp(self.certainty / max(1, count))))

    def fail(self, refused: Refused) -> None:
        self.done = True
        self.tell(refused)

    def begin_again(self) -> None:
        """Forget the tokens of an attempt that failed before the client was told any text."""
        if self.asked.sampler is not None:
            self.asked.sampler.begin_again()
        self._begin()

    def _say(self, piece: str) -> None:
        self.pieces.append(piece)
        self.tell(piece)
