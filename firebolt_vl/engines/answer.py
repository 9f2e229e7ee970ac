"""Answer of an engine, as all of them give it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Answer:
    """An answer.

    text           what it says
    tokens         its tokens, its end included
    complete       whether the model ended it itself, before it ran out of tokens
    probability    the geometric mean over its tokens of the probability that each was chosen with
    prompt_tokens  how many tokens the question is in its prompt
    """

    text: str
    tokens: list[int]
    complete: bool
    probability: float
    prompt_tokens: int


class Engine(Protocol):
    """Something that answers, whatever computes it."""

    def answer(
        self,
        image: "Image.Image | None",
        question: str,
        max_new_tokens: int = 128,
        on_token: Callable[[int], None] | None = None,
    ) -> Answer:
        """Answer a question about an upright RGB image (`views.images.open_image`), or about none.

        The answer is the most likely one, token by token. `on_token` is called with each token as soon as it is there.
        Raises Failure for a question that the model cannot be asked.
        """
        ...
