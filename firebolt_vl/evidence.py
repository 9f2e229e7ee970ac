"""Evidence for an answer: what hiding each part of the image does to it, and what each word weighed."""

import re
import unicodedata
from dataclasses import dataclass

from .checkpoint import Loaded
from .outputs import write_picture
from .prompts import specials

# Kana, Chinese characters, Thai: no spaces stand between words, and a letter is taken for a word.
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"
BETWEEN_SPACES = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


@dataclass
class View:
    """One grid: what it shows, where it lies in pixels of the image, and what masking it does to the answer."""

    view: str
    box: list[float]
    effect_nats: float


@dataclass
class Word:
    """A word of the question and its weights, one for each view: the mean over its tokens."""

    word: str
    weights: list[float]


@dataclass
class Evidence:
    """`views`: what the answer rests on, by occlusion. `words`: what each word of the question weighed, None where the
    model's connector has no weights."""

    views: list[View]
    words: list[Word] | None
    picture: str


def find_evidence(
    loaded: Loaded, inputs, text: str, tokens, picture, question: str, answer: str, path: str
) -> Evidence:
    """Find what an answer, made of `tokens` after the prompt `text`, rests on, and draw it to `path`."""
    import torch

    from .picture import draw

    sizes = torch.tensor([[picture.height, picture.width]])
    rests = loaded.model.ground(**inputs, method="occlusion", answer_ids=tokens[None], image_sizes=sizes)
    kept = rests.grid_mask[0]
    boxes, effects = rests.boxes[0][kept].tolist(), rests.effects[0][kept].tolist()
    words = None
    if has_weights(loaded.model):
        weighed = loaded.model.ground(**inputs, method="weights")
        words = [
            Word(question[start:end], shares) for start, end, shares in word_weights(loaded, weighed, text, question)
        ]
    kinds = _kinds(loaded, len(boxes))
    write_picture(
        "--grounding",
        path,
        lambda unfinished: draw(
            picture,
            [word.word for word in words or ()],
            [word.weights for word in words] if words else None,
            boxes,
            effects,
            question,
            answer,
            unfinished,
            patches=kinds.count("patch"),
        ),
    )
    views = [View(*of_one) for of_one in zip(kinds, boxes, effects)]
    return Evidence(views, words, path)


def _kinds(loaded: Loaded, count: int) -> list[str]:
    """Tell of each of the `count` grids of an image whether it is the global view, a tile or a patch."""
    config = loaded.model.config
    side = loaded.processor.image_processor.size["height"] // config.vision_config.patch_size
    patches = 0 if config.grids == "views" else side * side
    return ["global", *["tile"] * count][: count - patches] + ["patch"] * patches


def has_weights(model) -> bool:
    """Tell whether a model's connector weighs the grids for each word."""
    return model.config.connector == "cmm"


def word_weights(loaded: Loaded, weighed, text: str, question: str) -> list[tuple[int, int, list[float]]]:
    """Find where each word of the question starts and ends in it, and the mean weights of the tokens that any of its
    letters is in; `weighed` is the grounding of the prompt `text`, of which the question is the end."""
    kept = weighed.grid_mask[0]
    spans = loaded.processor.tokenizer(text, return_offsets_mapping=True, **specials(loaded, text)).offset_mapping
    first = max(0, text.rfind(question))
    words, token = [], 0
    for start, end in word_spans(question):
        while token < len(spans) and spans[token][1] <= first + start:
            token += 1
        after = token
        while after < len(spans) and spans[after][0] < first + end:
            after += 1
        if after > token:
            words.append((start, end, weighed.phrase(0, token, after)[kept].tolist()))
    return words


def word_spans(question: str) -> list[tuple[int, int]]:
    """Find where each word starts and ends, without the punctuation around it."""
    spans = []
    for found in BETWEEN_SPACES.finditer(question):
        start, end = found.span()
        while start < end and unicodedata.category(question[start]).startswith("P"):
            start += 1
        while start < end and unicodedata.category(question[end - 1]).startswith("P"):
            end -= 1
        if start < end:
            spans.append((start, end))
    return spans
