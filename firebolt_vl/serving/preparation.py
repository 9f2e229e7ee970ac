"""Requests made ready for the model, beside it: prompts rendered and tokenised, images decoded."""

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from ..ask import ignore_settings
from ..checkpoint import Loaded
from ..errors import Failure, first_line
from ..evaluate.familiar import read_familiar
from ..prompts import check_controls, render, room_for_answer, specials
from .chat import Chat
from .pictures import Sources
from .refusal import Refused, bad_request
from .row import Prepared
from .sampling import Sampler
from .sight import Clips, Sight, Views

if TYPE_CHECKING:
    from collections.abc import Callable

UNSAID = 128
"""Tokens that an answer may have where the request does not say, as with `firebolt ask`."""


class Most(NamedTuple):
    """Most tokens that a prompt and an answer may have."""

    prompt: int
    answer: int


class Preparation:
    """A checkpoint's way from a request to what its model takes."""

    def __init__(self, loaded: Loaded, folder: Path, sources: Sources, most: Most, note: "Callable[[str], None]"):
        """`most` are the most tokens that any request may have; `note` is told which settings of the checkpoint's are
        not used. The model's own settings become those of the most likely answer."""
        ignore_settings(loaded, 0, note)
        self.sampled = loaded.model.generation_config
        ignore_settings(loaded, None, lambda line: None)
        self.loaded, self.sources, self.most = loaded, sources, most
        self.familiar = None if is_foveated(loaded.model) else read_familiar(folder)
        self.sight: Sight = Clips(loaded) if is_foveated(loaded.model) else Views(loaded, self.familiar)
        self.lock = Lock()
        """Held while tokenizer and templates are used, which are made for one thread."""

    def prepare(self, chat: Chat) -> Prepared:
        """Make a request ready. Raises Refused."""
        try:
            with self.lock:
                text = self._prompt(chat)
                prompt = self.loaded.processor.tokenizer(text, **specials(self.loaded, text)).input_ids
        except Failure as error:
            raise bad_request(str(error), "messages") from None
        if len(prompt) > self.most.prompt:
            raise bad_request(
                f"messages has {len(prompt):,} tokens; expected at most {self.most.prompt:,}, the most here",
                "messages",
                "context_length_exceeded",
            )
        self._room(len(prompt))  # before images are read
        pictures = self.sight.ready(
            [self.sources.read(address, f"image {number}") for number, address in enumerate(chat.images, 1)]
        )
        room = self._room(len(prompt) + sum(picture.positions for picture in pictures))
        return Prepared(
            prompt=prompt,
            pictures=pictures,
            most=min(chat.most_tokens or UNSAID, self.most.answer, room),
            sampler=self._sampler(chat),
            stop=chat.stop,
            doubts=self._doubts(chat, [doubt for picture in pictures for doubt in picture.doubts]),
        )

    def _room(self, positions: int) -> int:
        """The most tokens that an answer may have. Raises Refused where there is no room for one."""
        try:
            return room_for_answer(self.loaded.model, positions)
        except Failure as error:
            raise bad_request(str(error), "messages", "context_length_exceeded") from None

    def _prompt(self, chat: Chat) -> str:
        for text in chat.texts:
            check_controls(self.loaded, text)
        if self.loaded.processor.chat_template is not None:
            return render(self.loaded, _plain(chat.messages) if is_foveated(self.loaded.model) else chat.messages)
        if len(chat.messages) > 1:
            raise Failure(
                f"messages has {len(chat.messages)} messages; expected one, since this model has no chat template"
            )
        return chat.question

    def _sampler(self, chat: Chat) -> Sampler | None:
        if chat.sampling is None:
            return None
        try:
            return Sampler(self.sampled, chat.sampling, self.loaded.model.device)
        except ValueError as error:
            raise Refused(
                500, f"the checkpoint's generation_config.json cannot be sampled with ({first_line(error)})", "settings"
            ) from None

    def _doubts(self, chat: Chat, of_images: list[str]) -> list[str] | None:
        if self.familiar is None:
            return None
        return list(dict.fromkeys([*self.familiar.doubts_of_question(chat.question), *of_images]))


def is_foveated(model) -> bool:
    """Return whether a model is a foveated one, which looks at frames."""
    from ..model import FoveatedVLM

    return isinstance(model, FoveatedVLM)


def _plain(messages: list[dict]) -> list[dict]:
    """Messages with their texts alone, as templates of text models and `firebolt watch` have them."""
    return [
        {**message, "content": "".join(part["text"] for part in message["content"] if part["type"] == "text")}
        for message in messages
    ]
