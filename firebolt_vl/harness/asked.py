"""A model that harnesses ask: questions about images in memory, in batches, and losses of given answers."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image

from ..answer_files import Answer, Question
from ..batch import Answering
from ..checkpoint import quiet
from ..evaluation import Examinee
from ..prompts import prompt, render, specials


class Turn(NamedTuple):
    """One message of a conversation; among what it shows a video is its path."""

    role: str
    text: str
    images: tuple[Image.Image | str, ...] = ()


class AskedModel:
    """A checkpoint as harnesses use it: answers are the most likely ones, token by token."""

    def __init__(self, checkpoint: str | None, device: str = "auto", **how):
        """`how` goes to `checkpoint.load`: dtype, quantize. Raises Misuse, Failure: what cannot be done."""
        self.examinee = Examinee(checkpoint, device, **how)
        with quiet():
            self.loaded = self.examinee.loaded(print)
        self.images: dict[str, Image.Image] = {}
        self.conversations: dict[int, Sequence[Turn]] = {}
        self.answering = Answering(self.loaded, self.images.__getitem__, 1, prompted=self._prompted)

    def answer(
        self, conversations: Sequence[Sequence[Turn]], max_new_tokens: int, until: Sequence[str] = ()
    ) -> list[str]:
        """The answers to conversations that end with a user's turn, each cut before the first of `until` in it.

        Raises ValueError for a conversation that cannot be answered.
        """
        self.answering.max_new_tokens = max_new_tokens
        rows = []
        for line, turns in enumerate(conversations):
            names = [self._name(image) for turn in turns for image in turn.images]
            self.conversations[line] = turns
            rows.append(Question(line, line, turns[-1].text, names))
        with quiet():
            found = self.answering.answer(rows)
        self.images.clear()
        self.conversations.clear()
        answers = []
        for one in found:
            if not isinstance(one, Answer):
                raise ValueError(f"AskedModel: the conversation cannot be answered ({one.error})")
            answers.append(cut(one.answer, until))
        return answers

    @torch.no_grad()
    def loss(self, turns: Sequence[Turn], reply: str) -> tuple[float, bool]:
        """The mean cross-entropy of a reply's tokens, in nats, and whether each of them is the most likely one."""
        with quiet():
            text = self._render(turns)
            pictures = [image for turn in turns for image in turn.images]
            given = {"images": [pictures]} if pictures else {}
            inputs = self.loaded.processor(text=[text], return_tensors="pt", **specials(self.loaded, text), **given)
            tokenizer = self.loaded.processor.tokenizer
            tokens = tokenizer(reply, add_special_tokens=False, return_tensors="pt").input_ids
            if not tokens.numel():
                raise ValueError("AskedModel: reply is empty; expected a token or more")
            ids = torch.cat([inputs["input_ids"], tokens], 1)
            given = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
            model, asked = self.loaded.model, inputs["input_ids"].shape[1]
            mask = torch.arange(ids.shape[1])[None] < asked
            logits = model(
                **{name: value.to(model.device) for name, value in given.items()},
                input_ids=ids.to(model.device),
                attention_mask=torch.ones_like(ids).to(model.device),
                prompt_mask=mask.to(model.device),
            ).logits[0, asked - 1 : -1]
        wanted = tokens[0].to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits.float(), wanted)
        return float(loss), bool((logits.argmax(-1) == wanted).all())

    def _name(self, image: Image.Image) -> str:
        name = hashlib.blake2b(f"{image.mode} {image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()
        self.images[name] = image if image.mode == "RGB" else image.convert("RGB")
        return name

    def _prompted(self, row: Question) -> str:
        return self._render(self.conversations[row.line])

    def _render(self, turns: Sequence[Turn]) -> str:
        """The prompt of a conversation, with each turn's images before its text."""
        if len(turns) == 1:
            return prompt(self.loaded, turns[0].text, len(turns[0].images))
        messages = [
            {
                "role": turn.role,
                "content": [*[{"type": "image"}] * len(turn.images), {"type": "text", "text": turn.text}],
            }
            for turn in turns
        ]
        return render(self.loaded, messages)


def cut(answer: str, until: Sequence[str]) -> str:
    """An answer before the first of the texts that end it."""
    for end in until:
        if end:
            answer = answer.split(end)[0]
    return answer
