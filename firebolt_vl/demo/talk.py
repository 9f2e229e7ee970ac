"""Conversation of a visitor and a model about one picture or video, and what is known of each of its words."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from ..model.foveated import VisualTokens


class Marked(NamedTuple):
    """Word of a text, text[start:end]: its weights, one for each grid, and the probability that it was chosen with."""

    start: int
    end: int
    weights: Sequence[float] | None = None
    probability: float | None = None


@dataclass
class Turn:
    """One question with its answer.

    boxes       [G,5] (number of a picture, y0, x0, y1, x1), in 0..1 of that picture: the grids that weights are about
    prompt      the prompt that the question was part of, and `tokens` [N] the answer to it, for a look at what it
                rests on
    facts       how sure, how long, how fast: each a few words
    doubts      what of the question and the picture is unlike what the model was trained on
    """

    question: str
    answer: str
    complete: bool
    prompt: str
    tokens: "torch.Tensor"
    question_words: list[Marked] = field(default_factory=list)
    answer_words: list[Marked] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


class Effect(NamedTuple):
    """Effect of hiding a part of what is seen: by how many nats the answer's log-probability falls.

    `box` (y0, x0, y1, x1) in 0..1 of picture number `frame`.
    """

    frame: int
    box: Sequence[float]
    nats: float


@dataclass
class Talk:
    """A visitor's conversation about one file.

    path        the file; None before there is one
    pictures    of what it shows, as `data:` URLs, and `captions` of them
    visual      what a foveated model saw of it, once it has looked, and `looks` [T][h][w] where
    """

    path: str | None = None
    pictures: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    visual: "VisualTokens | None" = None
    looks: list[list[list[float]]] | None = None


class Settings(NamedTuple):
    """Settings of one question: the answer's longest length, a seed to sample with (None: the most likely answer), and
    whether the questions and answers before it are part of the prompt."""

    max_new_tokens: int = 128
    seed: int | None = None
    remember: bool = False
