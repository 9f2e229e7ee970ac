"""Order of rows in training, and rows as tensors.

The order is a function of the seed and the number of the step alone, so a position in the data is one number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ...files.problems import BadRow, Problem
from ...model import FireboltProcessor
from .chat import IGNORED, Tokens
from .dataset import Conversations, Example

BATCHES_A_POOL = 50


@dataclass(frozen=True)
class BatchOrder:
    """Rows of like length share a batch, and every row comes once an epoch.

    Each epoch shuffles all rows, sorts them by `sizes` within pools of 50 batches, cuts the pools into batches of
    `batch_size` rows and shuffles the batches. The last one may be smaller.
    """

    sizes: np.ndarray
    batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.sizes) // self.batch_size)

    def batch(self, step: int) -> np.ndarray:
        """The rows of the batch of a step, from 0, in the order of their length."""
        epoch, number = divmod(step, self.batches_per_epoch)
        return self._epoch(epoch)[number]

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        cached = getattr(self, "_cached", (None, None))
        if cached[0] != epoch:
            cached = (epoch, self._shuffled(epoch))
            object.__setattr__(self, "_cached", cached)
        return cached[1]

    def _shuffled(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        rows = rng.permutation(len(self.sizes))
        batches = []
        for start in range(0, len(rows), BATCHES_A_POOL * self.batch_size):
            pool = rows[start : start + BATCHES_A_POOL * self.batch_size]
            pool = pool[np.argsort(self.sizes[pool], kind="stable")]
            batches += [pool[first : first + self.batch_size] for first in range(0, len(pool), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def parts(self, step: int, processes: int, micro_batches: int) -> list[list[np.ndarray]]:
        """The batch of a step for each process, as `micro_batches` pieces; of like length across processes.

        Pieces may differ by one row, and be empty where the batch has fewer rows than there are pieces.
        """
        pieces = np.array_split(self.batch(step), processes * micro_batches)
        return [[pieces[turn * processes + process] for turn in range(micro_batches)] for process in range(processes)]


@dataclass
class MicroBatch:
    """Inputs of the model, padded on the right or packed, None where every row was bad; and the bad rows."""

    inputs: dict[str, Tensor] | None
    problems: list[Problem] = field(default_factory=list)

    @property
    def answer_tokens(self) -> int:
        # The first column is never predicted.
        return 0 if self.inputs is None else int((self.inputs["labels"][:, 1:] != IGNORED).sum())

    @property
    def counted(self) -> int:
        """Number of tokens (or pairs) that the mean of the loss is over."""
        return self.answer_tokens

    @property
    def text_tokens(self) -> int:
        if self.inputs is None:
            return 0
        mask = self.inputs.get("attention_mask")
        return self.inputs["input_ids"].numel() if mask is None else int(mask.sum())

    @property
    def positions(self) -> int:
        """Number of text positions that are computed, padding too."""
        return 0 if self.inputs is None else self.inputs["input_ids"].numel()

    @property
    def has_images(self) -> bool:
        return self.inputs is not None and "pixel_values" in self.inputs

    def to(self, device: torch.device) -> "MicroBatch":
        if self.inputs is None:
            return self
        return replace(
            self, inputs={name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        )


class Collator:
    """Rows, by their numbers, as a micro-batch; rows that turn out bad are left out of it and noted."""

    def __init__(self, dataset: Conversations, processor: FireboltProcessor):
        self.dataset = dataset
        self.processor = processor

    def __call__(self, rows: Sequence[int]) -> MicroBatch:
        examples, problems = self._read(rows)
        if not examples:
            return MicroBatch(None, problems)
        texts = self.text([example.tokens for example in examples])
        return MicroBatch({**texts, **self.pictures(examples)}, problems)

    def _read(self, rows: Sequence[int]) -> tuple[list[Example], list[Problem]]:
        examples, problems = [], []
        for row in rows:
            try:
                examples.append(self.dataset[int(row)])
            except BadRow as error:
                problems.append(self.dataset.problem(int(row), error))
        return examples, problems

    def pictures(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return what the model sees of the examples; nothing where none of them has an image."""
        if not any(example.images for example in examples):
            return {}
        return dict(self.processor.image_processor([example.images for example in examples], return_tensors="pt"))

    def text(self, texts: Sequence[Tokens]) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` and `labels` [N,T], padded on the right."""
        longest = max(len(tokens.ids) for tokens in texts)
        ids = torch.full((len(texts), longest), self.processor.tokenizer.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        labels = torch.full_like(ids, IGNORED)
        for row, tokens in enumerate(texts):
            length = len(tokens.ids)
            ids[row, :length] = torch.tensor(tokens.ids)
            labels[row, :length] = torch.tensor(tokens.labels)
            mask[row, :length] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class PackedCollator(Collator):
    """Rows as a micro-batch whose texts stand one after the other in one row, without padding.

    Each keeps its own images, and its positions begin at 0. As transformers' collators for padding-free training tell
    it, so do `position_ids`, and `cu_seq_lens_q` [N+1], the borders.
    """

    def text(self, texts: Sequence[Tokens]) -> dict[str, Tensor]:
        """`input_ids`, `position_ids` and `labels` [1,T], and `cu_seq_lens_q` [N+1] int32."""
        lengths = torch.tensor([len(tokens.ids) for tokens in texts])
        # What a text begins with follows on nothing.
        labels = [label for tokens in texts for label in (IGNORED, *tokens.labels[1:])]
        return {
            "input_ids": torch.tensor([[number for tokens in texts for number in tokens.ids]]),
            "position_ids": torch.cat([torch.arange(int(length)) for length in lengths])[None],
            "cu_seq_lens_q": torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32),
            "labels": torch.tensor([labels]),
        }


class StepBatches(torch.utils.data.Sampler):
    """The micro-batches of one process from a step on, as lists of row numbers: what a DataLoader's workers load.

    `rows` are the numbers of the rows that `order` puts in order.
    """

    def __init__(
        self,
        order: BatchOrder,
        rows: np.ndarray,
        process: int,
        processes: int,
        micro_batches: int,
        start: int,
        stop: int,
    ):
        self.order = order
        self.rows = rows
        self.process, self.processes, self.micro_batches = process, processes, micro_batches
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.micro_batches

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for part in self.order.parts(step, self.processes, self.micro_batches)[self.process]:
                yield self.rows[part].tolist()
