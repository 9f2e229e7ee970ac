"""Rows of data files as trl takes them: by their numbers, read when their turn comes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...files.problems import BadRow, Problem, TooManyBadRows
from ...model import FoveatedProcessor
from ..data import Collator, Conversations
from ..data.chat import IGNORED, Tokens
from ..data.dataset import Example
from ..data.rows import ASSISTANT, HUMAN
from ..foveated.job import FoveatedCollator
from ..interrupts import ignore_interrupts
from .goals import goal_of

PROBLEMS = "problems"
"""The key under which bad rows travel with a batch, from the process that read it to the one that counts them."""


class Source(NamedTuple):
    """Rows of a data set, by their indices in it."""

    dataset: Conversations
    rows: np.ndarray


class Found(NamedTuple):
    """A row that could be read."""

    source: Source
    index: int
    example: Example


class Spares:
    """The rows of some sources, numbered through; for one that turns out bad when it is read comes the next one.

    So a batch has as many rows as it was to have, and a group of answers its question. What was bad is in `problems`,
    with the number of its source, until it is taken.
    """

    def __init__(self, *sources: Source):
        self.sources = sources
        self.problems: list[tuple[int, Problem]] = []
        self._last: tuple[int, Found] | None = None

    def read(self, number: int) -> Found:
        """Read the row of a number, or the next one of its source that can be read.

        Raises TooManyBadRows where none can.
        """
        if torch.utils.data.get_worker_info() is not None:
            ignore_interrupts()  # which ends the step at hand, for which this process reads
        if self._last is not None and self._last[0] == number:  # answers to one question come one after another
            return self._last[1]
        place, which = number, 0
        while place >= len(self.sources[which].rows):
            place -= len(self.sources[which].rows)
            which += 1
        source = self.sources[which]
        for further in range(len(source.rows)):
            index = int(source.rows[(place + further) % len(source.rows)])
            try:
                found = Found(source, index, self._checked(source, index))
            except BadRow as error:
                self.problems.append((which, source.dataset.problem(index, error)))
                continue
            self._last = (number, found)
            return found
        raise TooManyBadRows(f"none of the {len(source.rows)} rows can be read; the last: {self.problems[-1][1]}")

    def _checked(self, source: Source, index: int) -> Example:
        return source.dataset[index]

    def take_problems(self) -> list[tuple[int, Problem]]:
        """Return the rows that were bad since they were taken last."""
        found, self.problems = self.problems, []
        return found


class AnswerBatches:
    """Batches for SFTTrainer: the inputs of the model, with `labels` on all answers, and where each prompt ends."""

    def __init__(self, spares: Spares, collator: Collator):
        self.spares = spares
        self.collator = collator

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        read = [self.spares.read(example["row"]).example for example in examples]
        batch = self.collator.text([one.tokens for one in read])
        return {**self._inputs(batch, self.collator.pictures(read)), PROBLEMS: self.spares.take_problems()}

    def _inputs(self, text: dict[str, torch.Tensor], pictures: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Add what trl, which calls the model without labels, would leave out.

        For Firebolt that is where the prompt ends; for the foveated model, that logits are not needed: trl makes them.
        """
        if isinstance(self.collator, FoveatedCollator):
            return {**text, **pictures, "logits_to_keep": 1}
        before = (text["labels"] != IGNORED).long().cumsum(-1) == 0
        return {**text, **pictures, "prompt_mask": before & text["attention_mask"].bool()}


class PreferenceBatches(AnswerBatches):
    """Batches for DPOTrainer: N chosen answers, then the N rejected ones, each with its images."""

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        read = [self.spares.read(example["row"]).example for example in examples]
        texts: list[Tokens] = [one.tokens.last_answer() for one in read]
        texts += [one.rejected.last_answer() for one in read if one.rejected is not None]
        inputs = self._inputs(self.collator.text(texts), self.collator.pictures([*read, *read]))
        labels = inputs.pop("labels")
        return {**inputs, "completion_mask": (labels != IGNORED).long(), PROBLEMS: self.spares.take_problems()}


class Questions(Spares):
    """Rows for GRPOTrainer: a question with its images, and what is right for it."""

    def __init__(self, rewards: Sequence[str], *sources: Source):
        super().__init__(*sources)
        self.rewards = tuple(rewards)

    def __call__(self, columns: dict[str, list]) -> dict[str, list]:
        """Turn the columns of a batch, as `datasets` has them, into those of its questions."""
        found = [self.question(number) for number in columns["row"]]
        return {name: [one[name] for one in found] for name in found[0]} if found else {}

    def question(self, number: int) -> dict[str, Any]:
        """Make the row that the trainer takes of one of ours."""
        found = self.read(number)
        row = found.source.dataset.row(found.index)
        roles = {HUMAN: "user", ASSISTANT: "assistant"}
        prompt = [{"role": roles[turn.role], "content": turn.text} for turn in row.turns[:-1]]
        goal = goal_of(row, self.rewards)
        return {"prompt": prompt, "images": found.example.images, "goal": goal, PROBLEMS: self.take_problems()}

    def _checked(self, source: Source, index: int) -> Example:
        """Read a row. Raises BadRow for a box that lies beyond the image, too."""
        example, goal = super()._checked(source, index), goal_of(source.dataset.row(index), self.rewards)
        if goal.box is not None:
            width, height = example.images[0].size
            if goal.box[2] > height or goal.box[3] > width:
                ends = f"it ends at {goal.box[3]:g}, {goal.box[2]:g}"
                raise BadRow("box beyond the image", f"{ends}; expected within {width} x {height} pixels")
        return example


def collator_of(dataset: Conversations, processor) -> Collator:
    """The collator of the model that a processor is of."""
    return (FoveatedCollator if isinstance(processor, FoveatedProcessor) else Collator)(dataset, processor)


def numbered(start: int, count: int):
    """Numbers of rows as a data set of `datasets`, beside a column by which trl knows that there are images."""
    from datasets import Dataset, Features, Value
    from datasets import Sequence as Column

    columns = Features({"row": Value("int64"), "images": Column(Value("string"))})
    numbers = list(range(start, start + count))
    return Dataset.from_dict({"row": numbers, "images": [[] for _ in numbers]}, features=columns)
