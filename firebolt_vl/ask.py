"""One question about one image: the answer, how long it took, and where it comes from."""

import math
import os
import re
import stat
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from .checkpoint import Loaded, choose_device, load, locate, quiet
from .errors import Failure, Misuse, first_line
from .outputs import check_picture, write_picture

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from PIL import Image

# Kana, Chinese characters, Thai: no spaces stand between words, and a letter is taken for a word.
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"
BETWEEN_SPACES = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


@dataclass
class Timing:
    """Seconds: until the model was there, libraries imported; then, from the start of generation, until the first token
    and the last; and the rate of the tokens after the first one (None where there is no second)."""

    load_s: float
    first_token_s: float
    total_s: float
    tokens_per_s: float | None


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


@dataclass
class Reply:
    question: str
    answer: str
    complete: bool
    """Whether the model ended the answer itself, before it ran out of tokens."""
    image: dict
    checkpoint: str
    device: str
    dtype: str
    quantize: str | None
    seed: int | None
    prompt_tokens: int
    answer_tokens: int
    timing: Timing
    probability: float | None
    """The geometric mean over the answer's tokens, its end included, of the probability that each was chosen with."""
    knows: str | None = None
    """What the model was made for, where it says so (`evaluate/familiar.py`): the one in the package does."""
    doubts: list[str] = field(default_factory=list)
    """What of the question and the image is unlike that: the answer is a guess where there is something."""
    grounding: Evidence | None = None

    def to_dict(self) -> dict:
        return asdict(self)


def ask(
    image: str,
    question: str,
    checkpoint: str | None = None,
    max_new_tokens: int = 128,
    grounding: str | None = None,
    device: str = "auto",
    seed: int | None = None,
    say: Callable[[str], None] | None = None,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
    **how,
) -> Reply:
    """Answer `question` about the image file `image`.

    The answer is the most likely one, token by token; with a `seed` it is sampled, and the same for the same seed.
    `grounding` names a PNG file that the grounding picture is written to: it is there whole or not at all, and in the
    place of another file only where that is such a picture, or with `overwrite`. `say` is called with each piece of the
    answer as soon as it is there; together they are the answer. `note` is told what a user should know. `how` goes to
    `checkpoint.load`: dtype, quantize, compile_step.

    A question that spells a control token of the model's is refused: it would end its turn and begin others.

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    start = time.perf_counter()
    question = question.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # bytes of another encoding
    if not question.strip():
        raise Misuse('QUESTION is empty; expected one, such as "what is in the image?"')
    check_numbers(max_new_tokens, seed)
    _check_image_path(image)
    if grounding is not None:
        check_picture("--grounding", grounding, (".png",), image, "image", overwrite)
    picture = _open(image)
    place = choose_device(device)
    folder = locate(checkpoint)

    with quiet():
        loaded = load(folder, place, **how)
        ignore_settings(loaded, seed, note)
        load_s = time.perf_counter() - start
        text = prompt(loaded, question)
        inputs = _inputs(loaded, picture, text)
        clock = TokenClock(SpokenText(loaded.processor, say) if say is not None else None)
        certainty = Certainty()
        try:
            tokens = _generate(loaded.model, inputs, max_new_tokens, seed, clock, certainty)
            reply = Reply(
                question=question,
                answer=loaded.processor.decode(tokens, skip_special_tokens=True).strip(),
                complete=tokens[-1].item() in stops(loaded.model),
                image={"path": image, "width": picture.width, "height": picture.height},
                checkpoint=str(folder),
                device=str(loaded.model.device),
                dtype=str(loaded.model.dtype).removeprefix("torch."),
                quantize=how.get("quantize"),
                seed=seed,
                prompt_tokens=inputs["input_ids"].shape[1],
                answer_tokens=len(tokens),
                timing=clock.timing(load_s),
                probability=certainty.of(tokens[None], [len(tokens)])[0],
                **_familiar(folder, question, picture),
            )
            if grounding is not None:
                reply.grounding = _ground(loaded, inputs, text, tokens, picture, reply, grounding)
        except (RuntimeError, MemoryError, ValueError) as error:  # out of memory, or settings that cannot be
            raise Failure(f"the model could not answer: {first_line(error)}") from None
    return reply


def check_numbers(max_new_tokens: int, seed: int | None) -> None:
    """Check the numbers of an answer. Raises Misuse."""
    if max_new_tokens < 1:
        raise Misuse(f"--max-new-tokens is {max_new_tokens}; expected at least 1")
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise Misuse(f"--seed is {seed}; expected a number of 64 bits, such as 0 to {2**64 - 1:,}")


def ignore_settings(loaded: Loaded, seed: int | None, note: Callable[[str], None]) -> None:
    """Set the generation settings of this command in the place of the checkpoint's, and tell which are ignored."""
    from .model.generation import own_settings

    try:
        ignored = own_settings(loaded.model, loaded.processor.tokenizer, sampled=seed is not None)
    except ValueError as error:
        raise Failure(f"the checkpoint's {error}") from None
    if ignored:
        note(f"the checkpoint's generation_config.json also sets {', '.join(ignored)}: not used here")


def _familiar(folder: "Path", question: str, picture: "Image.Image") -> dict:
    from .evaluate.familiar import read_familiar

    familiar = read_familiar(folder)
    if familiar is None:
        return {}
    return {"knows": familiar.knows, "doubts": familiar.doubts(question, picture)}


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


def _check_image_path(image: str) -> None:
    """Check an image's path before anything heavy is imported. Raises Misuse."""
    try:
        mode = os.stat(image).st_mode
    except FileNotFoundError:
        raise Misuse(f"{image} does not exist; check the path of the image") from None
    except OSError as error:
        raise Misuse(f"{image} cannot be opened ({error.strerror}); check the path of the image") from None
    if stat.S_ISDIR(mode):
        raise Misuse(f"{image} is a folder; expected one image file")


def _open(image: str) -> "Image.Image":
    from .model.images import ImageError, open_image

    try:
        return open_image(image)
    except ImageError as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Misuse(str(error)) from None


def prompt(loaded: Loaded, question: str, images: int = 1) -> str:
    """The prompt as the checkpoint wants it: in its chat template, or the question as it stands where it has none.

    Raises Failure for a question with a control token in it.
    """
    check_controls(loaded, question)
    if loaded.processor.chat_template is None:
        return question
    message = {"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": question}]}
    return render(loaded, [message])


def render(loaded: Loaded, messages: list[dict]) -> str:
    """A conversation in the checkpoint's chat template, up to where the answer begins. Raises Failure."""
    from .model.chat_template import ChatTemplateError

    try:
        return loaded.processor.apply_chat_template(messages, add_generation_prompt=True)
    except ChatTemplateError as error:
        raise Failure(f"checkpoint {loaded.model.name_or_path}: {error}") from None


def check_controls(loaded: Loaded, question: str) -> None:
    """Check that a question spells no control token, since it would forge turns. Raises Failure."""
    from .model.firebolt import control_tokens

    if held := next((token for token in control_tokens(loaded.processor.tokenizer) if token in question), None):
        raise Failure(f"the question has {held!r}, a control token of this model; write it another way")


def _inputs(loaded: Loaded, picture: "Image.Image", text: str):
    inputs = loaded.processor(images=picture, text=text, return_tensors="pt", **specials(loaded, text))
    room_for_answer(loaded.model, inputs["input_ids"].shape[1])
    return inputs.to(loaded.model.device)


def room_for_answer(model, prompt_tokens: int) -> int:
    """Return the most tokens that an answer may have. Raises Failure where the prompt leaves no room."""
    most = model.config.text_config.max_position_embeddings
    if prompt_tokens >= most:
        raise Failure(
            f"the question is {prompt_tokens:,} tokens long; expected fewer than {most:,}, as this model reads "
            "no more with its answer; shorten it"
        )
    return most - prompt_tokens


def specials(loaded: Loaded, text: str) -> dict[str, bool]:
    """Return how to tokenise a prompt: a template that starts with the first token must not get another one."""
    bos = loaded.processor.tokenizer.bos_token
    return {"add_special_tokens": not (bos and text.startswith(bos))}


def _generate(
    model, inputs, max_new_tokens: int, seed: int | None, clock: TokenClock, certainty: Certainty
) -> "torch.Tensor":
    import torch
    from transformers import LogitsProcessorList

    from .model.generation import settings_for

    prompt_tokens = inputs["input_ids"].shape[1]
    room = room_for_answer(model, prompt_tokens)
    if seed is not None:
        torch.manual_seed(seed)
    sequences = model.generate(
        **inputs,
        generation_config=settings_for(model, min(max_new_tokens, room)),
        streamer=clock,
        logits_processor=LogitsProcessorList([certainty]),
    )
    return sequences[0, prompt_tokens:]


def stops(model) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])


def _ground(loaded: Loaded, inputs, text: str, tokens, picture, reply: Reply, path: str) -> Evidence:
    import torch

    from .picture import draw

    sizes = torch.tensor([[picture.height, picture.width]])
    rests = loaded.model.ground(**inputs, method="occlusion", answer_ids=tokens[None], image_sizes=sizes)
    kept = rests.grid_mask[0]
    boxes, effects = rests.boxes[0][kept].tolist(), rests.effects[0][kept].tolist()
    words = _words(loaded, inputs, text, reply.question) if loaded.model.config.connector == "cmm" else None
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
            reply.question,
            reply.answer,
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


def _words(loaded: Loaded, inputs, text: str, question: str) -> list[Word]:
    """Each word of the question with the mean weights of the tokens that any of its letters is in."""
    weighed = loaded.model.ground(**inputs, method="weights")
    kept = weighed.grid_mask[0]
    spans = loaded.processor.tokenizer(text, return_offsets_mapping=True, **specials(loaded, text)).offset_mapping
    first = max(0, text.rfind(question))
    words, token = [], 0
    for start, end in word_spans(question):
        word, start, end = question[start:end], first + start, first + end
        while token < len(spans) and spans[token][1] <= start:
            token += 1
        after = token
        while after < len(spans) and spans[after][0] < end:
            after += 1
        if after > token:
            words.append(Word(word, weighed.phrase(0, token, after)[kept].tolist()))
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
