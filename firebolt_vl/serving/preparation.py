"""Requests made ready for the model, beside it: prompts rendered and tokenised, images decoded."""

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

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
from .sight import Sight

if TYPE_CHECKING:
    from collections.abc import Callable

UNSAID = 128
"""Tokens that an answer may have where the request does not say, as with `firebolt ask`."""


class Preparation:
    """A checkpoint's way from a request to what its model takes."""

    def __init__(self, loaded: Loaded, folder: Path, sources: Sources, most_tokens: int, note: "Callable[[str], None]"):
        """`most_tokens` is the most that any answer may have; `note` is told which settings of the checkpoint's are not
        used. The model's own settings become those of the most likely answer."""
        ignore_settings(loaded, 0, note)
        self.sampled = loaded.model.generation_config
        ignore_settings(loaded, None, lambda line: None)
        self.loaded, self.sources, self.most_tokens = loaded, sources, most_tokens
        self.familiar = read_familiar(folder)
        self.sight = Sight(loaded, self.familiar)
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
        try:
            room = room_for_answer(self.loaded.model, len(prompt))
        except Failure as error:
            raise bad_request(str(error), "messages", "context_length_exceeded") from None
        pictures = [
            self.sight.ready(self.sources.read(address, f"image {number}"), f"image {number}")
            for number, address in enumerate(chat.images, 1)
        ]
        return Prepared(
            prompt=prompt,
            pictures=pictures,
            most=min(chat.most_tokens or UNSAID, self.most_tokens, room),
            sampler=self._sampler(chat),
            stop=chat.stop,
            doubts=self._doubts(chat, [doubt for picture in pictures for doubt in picture.doubts]),
        )

    def _prompt(self, chat: Chat) -> str:
        for text in chat.texts:
            check_controls(self.loaded, text)
        if self.loaded.processor.chat_template is not None:
            return render(self.loaded, chat.messages)
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
