"""One question about one image, answered by another engine than PyTorch."""

import time
from collections.abc import Callable
from typing import Any

from .ask import Reply, check_question, familiar_with, open_picture
from .engines import load_engine
from .errors import Misuse
from .streaming import SpokenText, TokenClock


def ask_engine(
    image: str,
    question: str,
    engine: str,
    checkpoint: str | None,
    max_new_tokens: int = 128,
    say: Callable[[str], None] | None = None,
) -> Reply:
    """Answer `question` about the image file `image` from a folder that `firebolt export` wrote for `engine`.

    The answer is the most likely one, token by token; `say` is called with each piece of it. PyTorch is not needed.

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    start = time.perf_counter()
    question = check_question(question, max_new_tokens)
    picture = open_picture(image)
    if checkpoint is None:
        raise Misuse(f"--engine is {engine} without --checkpoint; expected a folder of firebolt export {engine}")
    loaded: Any = load_engine(checkpoint, engine)
    clock = TokenClock(SpokenText(loaded, say) if say is not None else None)
    load_s = time.perf_counter() - start
    clock.put(None)  # the prompt
    answer = loaded.answer(picture, question, max_new_tokens, on_token=lambda token: clock.put(_Number(token)))
    clock.end()
    return Reply(
        question=question,
        answer=answer.text,
        complete=answer.complete,
        image={"path": image, "width": picture.width, "height": picture.height},
        checkpoint=str(loaded.folder),
        device="cpu",
        dtype="float32",
        quantize=None if loaded.description.bits is None else f"int{loaded.description.bits}",
        seed=None,
        prompt_tokens=answer.prompt_tokens,
        answer_tokens=len(answer.tokens),
        timing=clock.timing(load_s),
        probability=answer.probability,
        **familiar_with(loaded.folder, question, [picture]),
    )


class _Number(int):
    """A token as a streamer is given it."""

    def item(self) -> int:
        return int(self)
