"""Observers of an answer while its tokens come: of its text, the time that they take, and their probabilities."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class Timing:
    """Seconds: until the model was there, libraries imported; then, from the start of generation, until the first token
    and the last; and the rate of the tokens after the first one (None where there is no second)."""

    load_s: float
    first_token_s: float
    total_s: float
    tokens_per_s: float | None


class Certainty:
    """A logits processor that changes nothing and keeps the probability with which each token of B rows was chosen."""

    def __init__(self):
        self.last = None
        self.chosen = []

    def __call__(self, input_ids, scores):
        import torch

        self._take(input_ids[:, -1])
        self.last = torch.log_softmax(scores.float(), dim=-1)
        return scores

    def of(self, answers: "torch.Tensor", counts: Sequence[int]) -> list[float]:
        """The geometric mean over the first `counts` tokens of each of answers [B,n], the last chosen after the last
        call."""
        self._take(answers[:, -1])
        return [
            math.exp(sum(step[row].item() for step in self.chosen[:count]) / max(1, count))
            for row, count in enumerate(counts)
        ]

    def _take(self, tokens: "torch.Tensor") -> None:
        if self.last is not None:
            self.chosen.append(self.last.gather(1, tokens[:, None].to(self.last.device))[:, 0])


class SpokenText:
    """The text of an answer as its tokens come, in whole characters, stripped at both ends as the answer is.

    Each token costs the same: only those since the last piece, and those of that piece for context, are decoded.
    """

    def __init__(self, processor, say: Callable[[str], None]):
        self.processor, self.say = processor, say
        self.tokens: list[int] = []
        self.context, self.said = 0, 0
        self.begun, self.held = False, ""

    def put(self, token: int) -> None:
        self.tokens.append(token)
        text = self._new_text()
        if text and not text.endswith("\ufffd"):  # the rest of that character is still to come
            self._say(text)

    def end(self) -> None:
        if text := self._new_text():
            self._say(text)

    def _new_text(self) -> str:
        before = self._decode(self.tokens[self.context : self.said])
        return self._decode(self.tokens[self.context :])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self.processor.decode(tokens, skip_special_tokens=True)

    def _say(self, text: str) -> None:
        self.context, self.said = self.said, len(self.tokens)
        text = self.held + (text if self.begun else text.lstrip())
        piece = text.rstrip()
        self.held = text[len(piece) :]
        if piece:
            self.begun = True
            self.say(piece)


class TokenClock:
    """A streamer that looks at the time and hands the tokens on: `generate` gives it the prompt, then every token."""

    def __init__(self, listener: SpokenText | None = None):
        self.start = time.perf_counter()
        self.times: list[float] = []
        self.listener = listener

    def put(self, value) -> None:
        self.times.append(time.perf_counter() - self.start)
        if self.listener is not None and len(self.times) > 1:
            self.listener.put(value.item())

    def end(self) -> None:
        if self.listener is not None:
            self.listener.end()

    def timing(self, load_s: float) -> Timing:
        made = self.times[1:]
        first, last = made[0], made[-1]
        rate = (len(made) - 1) / (last - first) if last > first else None
        return Timing(load_s=load_s, first_token_s=first, total_s=last, tokens_per_s=rate)
