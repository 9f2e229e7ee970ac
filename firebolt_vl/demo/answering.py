"""Models as the page asks them: an answer with what each of its words looked at, and what it rests on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import ask, watch
from ..checkpoint import Loaded, choose_device, locate, quiet
from ..errors import Failure, Misuse, first_line
from ..evidence import has_weights, word_weights
from ..foveated_checkpoint import load_any
from ..prompts import check_controls, prompt, render, specials, stops
from ..shown import in_words, percent
from ..streaming import Certainty, Timing, TokenClock
from ..watch import Source
from .hearing import Heard
from .talk import Effect, Marked, Settings, Talk, Turn

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluate.familiar import Familiar

# Files that were opened last: a question about one does not decode it again.
OPENED = 2
# Copies of a video's answer in one batch, each with another frame hidden.
MOST_ROWS = 16


def open_model(checkpoint: str | None, device: str, dtype: str, quantize: str | None) -> "PageModel":
    """Load a checkpoint of any of our models for the page. Raises Misuse, Failure."""
    from ..model import FoveatedVLMConfig

    place, folder = choose_device(device), locate(checkpoint)
    with quiet():
        loaded = load_any(folder, place, dtype, quantize)
    foveated = loaded.model.config.model_type == FoveatedVLMConfig.model_type
    return (FoveatedOnPage if foveated else FireboltOnPage)(loaded, folder)


class PageModel(ABC):
    """A loaded model that is asked about files."""

    def __init__(self, loaded: Loaded, folder: Path):
        from ..evaluate.familiar import read_familiar

        self.loaded, self.folder = loaded, folder
        self.theirs = loaded.model.generation_config
        self.familiar: Familiar | None = read_familiar(folder)
        self.open = lru_cache(OPENED)(self._open)

    @property
    def talks(self) -> bool:
        """Tell whether the model can be told what was said before."""
        return self.loaded.processor.chat_template is not None

    @property
    def weighs(self) -> bool:
        """Tell whether the words of a question and its answer have weights."""
        return False

    def answer(self, talk: Talk, question: str, settings: Settings, hear: Callable[[str], None]) -> Turn:
        """Answer a question about what is shown; `hear` is called with each piece of the answer, and with an empty text
        at each of its tokens.

        Raises:
            Misuse, Failure: what cannot be done, in one line.
        """
        if not question.strip():
            raise Misuse("the question is empty; expected one, such as “what is in the image?”")
        ask.check_numbers(settings.max_new_tokens, settings.seed)
        check_controls(self.loaded, question)
        self.loaded.model.generation_config = copy(self.theirs)
        with quiet(), _plainly():
            ask.ignore_settings(self.loaded, settings.seed, lambda line: None)
            return self._answer(talk, question, settings, hear)

    def rests_on(self, talk: Talk) -> list[Effect]:
        """Measure what the last answer rests on: each part of what is shown is hidden once. Raises Failure."""
        with quiet(), _plainly():
            return self._rests_on(talk, talk.turns[-1])

    @abstractmethod
    def _open(self, path: str) -> Source:
        """Open a file as the model is shown it. Raises Misuse, Failure."""

    @abstractmethod
    def _answer(self, talk: Talk, question: str, settings: Settings, hear: Callable[[str], None]) -> Turn:
        """Answer as `answer` says, with what was checked there."""

    @abstractmethod
    def _rests_on(self, talk: Talk, turn: Turn) -> list[Effect]:
        """Measure what the answer of a turn rests on."""

    def _turn(self, question: str, prompted: str, tokens: "Tensor", certainty: Certainty, heard: Heard) -> Turn:
        """A turn of an answer's tokens: each word of the answer with its probability, and how sure the whole is."""
        answer = self.loaded.processor.decode(tokens, skip_special_tokens=True).strip()
        mean = certainty.of(tokens[None], [len(tokens)])[0]
        chances = torch.stack([step[0] for step in certainty.chosen])
        words = [
            Marked(start, end, probability=float(chances[first:after].sum().exp()))
            for start, end, first, after in heard.words(answer)
        ]
        complete = tokens[-1].item() in stops(self.loaded.model)
        turn = Turn(question, answer, complete, prompted, tokens, answer_words=words)
        turn.facts.append(f"probability {percent(mean)}")
        return turn


class FireboltOnPage(PageModel):
    """A Firebolt-VL, asked about an image or a video."""

    @property
    def weighs(self) -> bool:
        return has_weights(self.loaded.model)

    def _open(self, path: str) -> Source:
        shown = ask.open_shown(path, None)
        return Source(shown.frames, shown.times, shown.duration) if ask.is_video(shown) else Source([shown], None, None)

    def _shown(self, talk: Talk) -> list:
        """Return what the processor takes: an image, or a video."""
        from ..model.video import Video

        source = self.open(talk.path)
        return source.frames if source.times is None else [Video(source.frames, source.times, source.seconds)]

    def _answer(self, talk: Talk, question: str, settings: Settings, hear: Callable[[str], None]) -> Turn:
        shown = self._shown(talk)
        prompted = self._prompted(talk, question, settings.remember, ask.shown_as(self.loaded, shown))
        inputs = ask.inputs_of(self.loaded, shown, prompted)
        heard = Heard(self.loaded.processor, hear)
        clock, certainty = TokenClock(heard), Certainty()
        model = self.loaded.model
        tokens = ask.generate(model, inputs, settings.max_new_tokens, settings.seed, clock, certainty)
        turn = self._turn(question, prompted, tokens, certainty, heard)
        turn.facts += _pace(clock.timing(0), len(tokens))
        frames = self.open(talk.path).frames
        if self.familiar is not None:
            turn.doubts = self.familiar.doubts(question, *frames)
        if ask.is_video(shown[0]) and not ask.knows_times(self.loaded):
            turn.facts.append("the frames are images to this model, which does not know times")
        if self.weighs:
            self._weigh(turn, inputs, heard, len(frames))
        return turn

    def _prompted(self, talk: Talk, question: str, remember: bool, images: int) -> str:
        """The prompt: of a question alone the one that `firebolt ask` makes, else the conversation up to it."""
        if not (remember and self.talks and talk.turns):
            return prompt(self.loaded, question, images)
        messages = _messages(talk, question)
        messages[0]["content"] = [*[{"type": "image"}] * images, {"type": "text", "text": messages[0]["content"]}]
        return render(self.loaded, messages)

    def _weigh(self, turn: Turn, inputs, heard: Heard, frames: int) -> None:
        """Add the weights of each word of the question and of the answer."""
        ids = torch.cat([inputs["input_ids"], turn.tokens[None]], 1)
        weighed = self.loaded.model.ground(
            **{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, method="weights"
        )
        kept, before = weighed.grid_mask[0], inputs["input_ids"].shape[1]
        turn.boxes = _numbered(weighed.boxes[0][kept].tolist(), frames)
        turn.question_words = [Marked(*word) for word in word_weights(self.loaded, weighed, turn.prompt, turn.question)]
        turn.answer_words = [
            word._replace(weights=weighed.phrase(0, before + first, before + after)[kept].tolist())
            for word, (_, _, first, after) in zip(turn.answer_words, heard.words(turn.answer))
        ]

    def _rests_on(self, talk: Talk, turn: Turn) -> list[Effect]:
        inputs = ask.inputs_of(self.loaded, self._shown(talk), turn.prompt)
        found = self.loaded.model.ground(**inputs, method="occlusion", answer_ids=turn.tokens[None])
        kept, frames = found.grid_mask[0], len(self.open(talk.path).frames)
        boxes, effects = _numbered(found.boxes[0][kept].tolist(), frames), found.effects[0][kept].tolist()
        return [Effect(number, box, nats) for (number, *box), nats in zip(boxes, effects)]


class FoveatedOnPage(PageModel):
    """A foveated model, asked about a video or an image."""

    def _open(self, path: str) -> Source:
        return watch.open_source(path, None)

    def _answer(self, talk: Talk, question: str, settings: Settings, hear: Callable[[str], None]) -> Turn:
        prompted = None
        if self.talks:
            messages = _messages(talk if settings.remember else Talk(), question)
            prompted = render(self.loaded, messages)
        source = self.open(talk.path) if talk.visual is None else None
        seen = 0 if talk.visual is None else talk.visual.tokens.shape[1]
        inputs = watch.inputs_of(self.loaded, source, question, prompted, looked_at=seen)
        if talk.visual is None:
            looked = watch.look(self.loaded.model, inputs, self.loaded.model.config.mode)
            talk.looks = looked.maps()[0].tolist()
            talk.visual = type(looked)(looked.tokens, looked.mask)
        heard = Heard(self.loaded.processor, hear)
        hear("")
        clock, certainty = TokenClock(heard), Certainty()
        tokens = watch.generate(
            self.loaded.model, inputs, talk.visual, settings.max_new_tokens, settings.seed, clock, certainty
        )
        turn = self._turn(question, question if prompted is None else prompted, tokens, certainty, heard)
        turn.facts += _pace(clock.timing(0), len(tokens))
        return turn

    def _rests_on(self, talk: Talk, turn: Turn) -> list[Effect]:
        """Measure by how many nats log p(answer) falls when the decoder sees all frames but one."""
        visual, model = talk.visual, self.loaded.model
        encoded = self.loaded.processor.tokenizer(
            [turn.prompt], return_tensors="pt", **specials(self.loaded, turn.prompt)
        )
        ids = torch.cat([encoded["input_ids"].to(model.device), turn.tokens[None]], 1)
        there = visual.mask[0].nonzero().flatten()
        masks = visual.mask.repeat(len(there) + 1, 1)
        masks[torch.arange(len(there)) + 1, there] = False
        scores = torch.cat(
            [self._scores(ids, len(turn.tokens), visual.tokens, part) for part in masks.split(MOST_ROWS)]
        )
        effects = (scores[0] - scores[1:]).tolist()
        return [Effect(frame, (0, 0, 1, 1), nats) for frame, nats in zip(there.tolist(), effects)]

    @torch.no_grad()
    def _scores(self, ids: "Tensor", length: int, visual: "Tensor", masks: "Tensor") -> "Tensor":
        """Score log p of the last `length` of the tokens [1,S] under each of n masks of the frames [n,T], [n]."""
        copies = len(masks)
        logits = self.loaded.model(
            ids.expand(copies, -1),
            mode="coarse_fine",  # logits at the text alone
            visual_tokens=visual.expand(copies, -1, -1),
            visual_mask=masks,
            use_cache=False,
        ).logits[:, -length - 1 : -1]
        chances = logits.float().log_softmax(-1).gather(-1, ids[:, -length:, None].expand(copies, -1, -1))
        return chances[..., 0].sum(-1)


def _numbered(boxes: list[list[float]], pictures: int) -> list[list[float]]:
    """Boxes of several pictures, equally many of each and one picture's after another's, each behind its number."""
    each = len(boxes) // pictures
    return [[number // each, *box] for number, box in enumerate(boxes)]


@contextmanager
def _plainly():
    """Turn what libraries raise while a model answers into a Failure."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:  # out of memory, or settings that cannot be
        raise Failure(f"the model could not answer: {first_line(error)}") from None


def _messages(talk: Talk, question: str) -> list[dict]:
    """The conversation as a chat template takes it, up to and with a new question."""
    messages = []
    for turn in talk.turns:
        messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    return [*messages, {"role": "user", "content": question}]


def _pace(timing: Timing, tokens: int) -> list[str]:
    rate = [f"{timing.tokens_per_s:.0f} tokens/s"] if timing.tokens_per_s else []
    count = f"{tokens} token{'s' if tokens > 1 else ''} in {in_words(timing.total_s)}"
    return [f"first token after {in_words(timing.first_token_s)}", count, *rate]
