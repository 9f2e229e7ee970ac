"""The rewards of a run as functions that trl calls: by name, for the rows that have them."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, ProcessorMixin

from .config import GrpoConfig
from .goals import Goal
from .grounding import grounding_shares
from .rewards import reward_of

AT_A_TIME = 32
"""Answers that are grounded in one call."""


def rewards_of_run(config: GrpoConfig, model: PreTrainedModel, processor: ProcessorMixin) -> list[Callable[..., list]]:
    """One function for each of the run's rewards, in their order, called as its name."""
    found: list[Callable[..., list]] = []
    for name in config.rewards:
        pattern = re.compile(config.format) if name == "format" and config.format is not None else None
        found.append(GroundingReward(model, processor) if name == "grounding" else TextReward(name, pattern))
    return found


class TextReward:
    """A reward that the answer's text decides; None for a row that does not have it."""

    def __init__(self, name: str, pattern: re.Pattern | None):
        self.name = self.__name__ = name
        self.pattern = pattern

    def __call__(self, completions: Sequence[list[dict]], goal: Sequence[Goal], **columns: Any) -> list[float | None]:
        return [
            reward_of(self.name, said[0]["content"].strip(), one, self.pattern) if self.name in one.rewards else None
            for said, one in zip(completions, goal)
        ]


class GroundingReward:
    """The reward of grounding, by the model as it is at this step; what a group says twice is looked at once."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        self.model = model
        self.processor = processor
        self.__name__ = "grounding"

    def __call__(
        self,
        completion_ids: Sequence[list[int]],
        goal: Sequence[Goal],
        prompts: Sequence[list[dict]],
        images: Sequence[list],
        **columns: Any,
    ) -> list[float | None]:
        keys = [
            (id(images[row][0]), text_of(prompts[row][-1]["content"]), tuple(ids))
            if "grounding" in goal[row].rewards and ids
            else None
            for row, ids in enumerate(completion_ids)
        ]
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key is not None}
        rows = sorted(first.values())
        shares: dict[int, float] = {}
        for start in range(0, len(rows), AT_A_TIME):
            chosen = rows[start : start + AT_A_TIME]
            shares |= dict(zip(chosen, self._shares(chosen, prompts, images, completion_ids, goal)))
        return [
            (0.0 if "grounding" in goal[row].rewards else None) if key is None else shares[first[key]]
            for row, key in enumerate(keys)
        ]

    def _shares(self, rows: list[int], prompts, images, completion_ids, goal: Sequence[Goal]) -> list[float]:
        messages = [[{**message, "content": text_of(message["content"])} for message in prompts[row]] for row in rows]
        texts = [
            self.processor.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in messages
        ]
        inputs = self.processor(
            images=[images[row] for row in rows],
            text=texts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        ).to(self.model.device)
        answers = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(completion_ids[row]) for row in rows],
            batch_first=True,
            padding_value=self.processor.tokenizer.pad_token_id,
        ).to(self.model.device)
        sizes = [(images[row][0].height, images[row][0].width) for row in rows]
        boxes = [box for row in rows if (box := goal[row].box) is not None]
        return grounding_shares(self.model, dict(inputs), answers, sizes, boxes)


def text_of(content: str | list[dict]) -> str:
    """The text of a message's content, images left out."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")
