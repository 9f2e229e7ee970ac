"""FireboltProcessor: questions and images -> the inputs of the model."""

import re
from typing import Any

from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from ..chat_template import check_template
from ..checkpoint_files import PROCESSORS, TOKENIZERS, check_parts
from ..loading import open_folder, tokenizer_named
from .image_processing_firebolt import FireboltImagesKwargs, image_rows
from .templates import CHAT_TEMPLATE, marked

# As transformers looks for them.
GENERATION_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


class FireboltProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: FireboltImagesKwargs  # pyright: ignore[reportIncompatibleVariableOverride]  # as in transformers


class FireboltProcessor(ProcessorMixin):
    r"""The tokenizer and the image processor of a Firebolt-VL model as one.

        processor(images=[image, None, [a, b]], text=["question", ...], return_tensors="pt", padding=True)

    gives `input_ids` and `attention_mask` [B,T] beside the image inputs of `FireboltImageProcessor.preprocess`; no
    image inputs if no row has an image. The text is tokenised as it stands: no placeholder stands for an image in it. A
    flat list of images goes to the rows one by one, or all to the one row if there is a single text. A `Video` (of
    `read_video`, or frames and their times) stands in a row as an image does: all of its frames are seen.

    Padding is on the left, as generation needs it, unless the tokenizer was made with a `padding_side` of its own (or
    the call names one). Without a `chat_template` the tokenizer's is used; `CHAT_TEMPLATE` is one in LFM2's format.
    A template is rendered within limits of time and memory; `tokenizer.apply_chat_template` is transformers' own, which
    has none.
    """

    valid_processor_kwargs = FireboltProcessorKwargs
    visual_arguments = "images"
    """What a row's pictures are given as."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        # What the tokenizer says is what happens: the side is set on it, and kept with it when it is saved.
        if tokenizer is not None and "padding_side" not in tokenizer.init_kwargs:
            tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        if chat_template is None:
            chat_template = getattr(tokenizer, "chat_template", None)
        if isinstance(chat_template, str):
            chat_template = marked(
                chat_template.removeprefix("\ufeff")
            )  # a file's byte-order mark is no part of a prompt
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):  # pyright: ignore[reportIncompatibleMethodOverride]  # by name alone
        """Load a processor like any of transformers; no code in the folder is run."""
        folder = open_folder(pretrained_model_name_or_path, kwargs)
        check_parts(folder, ("tokenizer", TOKENIZERS), ("processor", PROCESSORS))
        with tokenizer_named(folder):
            return super().from_pretrained(folder, **kwargs)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]  # by name, so that all is checked
        self, conversation, chat_template=None, **kwargs
    ):
        """Render a conversation like any of transformers.

        Raises ChatTemplateError for a template without end, and ValueError for `return_assistant_tokens_mask` where it
        does not mark what the assistant says.
        """
        templates = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        template = templates.get(chat_template or "default", chat_template)
        if isinstance(template, str):
            if kwargs.get("return_assistant_tokens_mask") and not GENERATION_MARKS.search(template):
                raise ValueError(
                    f"{type(self).__name__}: return_assistant_tokens_mask is True with a chat_template that has no "
                    "{% generation %} marks; expected one with them, as firebolt_vl.model.CHAT_TEMPLATE is"
                )
            variables = {"tools": None, "documents": None, "add_generation_prompt": False}
            variables |= {**self.tokenizer.special_tokens_map, **kwargs}
            for messages in _conversations(conversation):
                check_template(template, messages, variables)
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def prepare_inputs_layout(self, images: Any = None, text: Any = None, videos=None, audio=None, **kwargs) -> Any:
        if isinstance(text, str):
            text = [text]
        if images is not None:
            images = self.image_processor.fetch_images(images)
            images = image_rows([images] if all_of_one_row(images, text) else images)
        return images or None, text, given(videos), given(audio)

    def validate_inputs(self, images: Any = None, text: Any = None, videos=None, audio=None, **kwargs):
        super().validate_inputs(images=images, text=text, videos=videos, audio=audio, **kwargs)
        owner = type(self).__name__
        for name, value in (("videos", videos), ("audio", audio)):
            if value is not None:
                hint = "; a video is a Video among the images" if name == "videos" else ""
                raise ValueError(
                    f"{owner}: {name} is of type {type(value).__name__}; expected images and text alone{hint}"
                )
        if text is None:
            return
        if not text:
            raise ValueError(f"{owner}: text is an empty list; expected one text for each row")
        if images is not None and len(images) != len(text):
            raise ValueError(
                f"{owner}: {self.visual_arguments} has {len(images)} rows; expected {len(text)}, for each text an "
                "image, a list of images or None"
            )
        if "" in text and not self.tokenizer("").input_ids:
            raise ValueError(f"{owner}: text is empty in row {text.index('')}; expected at least one token in each")

    @property
    def unused_input_names(self) -> list[str]:
        return ["token_type_ids"]


def control_tokens(tokenizer) -> list[str]:
    """Return the special tokens, which no text may hold, since a text that spells one is tokenised as it."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    special = [*tokenizer.all_special_tokens, *(token.content for token in added if token.special)]
    return list(dict.fromkeys(token for token in map(str, special) if token))


def _conversations(given) -> list:
    """A list of conversations, of one or several."""
    return list(given) if given and isinstance(given[0], list | tuple) else [given]


def given(value) -> Any:
    """Return what was given; None for lists in which nothing came, as `[]` and `[[], [None]]`."""
    came = not isinstance(value, list | tuple) or any(given(one) is not None for one in value)
    return value if came else None


def all_of_one_row(images, text: list[str] | None) -> bool:
    """Return whether a flat list of images belongs to a single text, whose images they all are."""
    flat = isinstance(images, list | tuple) and not any(isinstance(image, list | tuple) for image in images)
    return flat and text is not None and len(text) == 1


__all__ = ["CHAT_TEMPLATE", "FireboltProcessor", "control_tokens"]
