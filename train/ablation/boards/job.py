"""Training of one variant on boards."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ....model import FireboltForConditionalGeneration
from ...tiny.optimizers import Optimizers
from ...tiny.small_job import SmallJob
from .task import Asked, Task
from .tower import boxes

WEIGHT_DECAY = 0.01


class BoardsJob(SmallJob):
    """The connector and the decoder of `model` learn, in place, to answer questions about boards.

    The loss is the cross-entropy of the answers, and the balance of the connector's experts where it has some. Each
    step draws its boards and questions anew, by `seed` and its number alone.
    """

    def __init__(self, model: FireboltForConditionalGeneration, grids: str, task: Task, seed: int):
        self.model, self.grids, self.task, self.seed = model, grids, task, seed
        recipe = task.settings
        self.steps = recipe.steps
        self.optimizers = Optimizers(
            model,
            self.steps,
            matrix_lr=recipe.matrix_lr,
            lr=recipe.lr,
            weight_decay=WEIGHT_DECAY,
            decay=recipe.decay,
            warmup=recipe.warmup,
            is_matrix=lambda name: ".kernel." not in name,
        )

    def step(self, number: int) -> dict[str, float]:
        asked = self.task.batch(self.seed, number, self.grids)
        logits, balance = answer_logits(self.model, self.grids, asked)
        answers = F.cross_entropy(logits, asked.questions.answers)
        loss = answers if balance is None else answers + self.model.balance_weight * balance
        done = self.optimizers.step(loss, number)
        measured = {"loss": answers.item(), "tokens": int(asked.questions.lengths.sum())}
        return measured if done else {**measured, "skipped": True}

    def save(self, folder: Path) -> None:
        self.model.eval().save_pretrained(folder)


def answer_logits(
    model: FireboltForConditionalGeneration, grids: str, asked: Asked, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Logits [N,V] of the answers, of grids under a mask [N,G], and the balance loss of the experts, in training."""
    ids, there = cut(asked)
    outputs = model.model(
        input_ids=ids,
        attention_mask=there,
        grids=asked.grids,
        grid_mask=mask,
        grid_boxes=boxes(grids).expand(len(ids), -1, -1),
        prompt_mask=there,
        use_cache=False,
    )
    last = outputs.last_hidden_state[torch.arange(len(ids)), asked.questions.lengths - 1]
    return model.lm_head(last), outputs.balance


def cut(asked: Asked) -> tuple[Tensor, Tensor]:
    """Token ids and their mask [N,T], no longer than the longest question."""
    longest = int(asked.questions.lengths.max())
    return asked.questions.ids[:, :longest], asked.questions.mask[:, :longest]
