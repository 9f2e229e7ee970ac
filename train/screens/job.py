"""The training of the model that reads: the tower reads patches first, then all of it learns to answer."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cmm.connector import Connector
from ...cmm.positions import patch_boxes
from ...model import FireboltForConditionalGeneration, FireboltProcessor
from ..tiny.fusion import EMBEDDING_STD, sharpen_queries
from ..tiny.optimizers import Optimizers
from ..tiny.small_job import SmallJob
from .batches import Batch, Drawing, Rows
from .reading import Heads

LEAST_WEIGHT = 1e-12
# Of the answers' gradient, how much reaches the tower: more, and while the decoder knows nothing it forgets to read.
HEARD = 0.1


@dataclass(frozen=True)
class Course:
    """Order of what is learned, in shares of all steps.

    reading    until here the tower alone learns, to read patches
    lines      until here questions are about single lines alone, where these are asked about
    all_grids  until here a token sees all grids; from then on those of the configuration's top_k
    """

    reading: float = 0.07
    lines: float = 0.09
    all_grids: float = 0.85


@dataclass(frozen=True)
class Amounts:
    """Screens and pages of a step, and weights of the losses beside the answers'.

    While the tower alone reads there are as many pages as else screens, and as many screens as else pages.
    """

    screens: int = 16
    pages: int = 8
    reading_loss: float = 1.0
    grounding_loss: float = 0.5


class ScreensJob(SmallJob):
    """A model that learns to read, in place: tower, connector and decoder.

    The loss of a step is, in the first part, that of the patches' labels (`reading.Heads`). Then it is the
    cross-entropy of the answer tokens, with `reading_loss` times the first one, and, where the connector weighs grids,
    `grounding_loss` times

        - mean log sum of w over the next letter's patches

    of the last layer, at the token before each letter of an answer: where a letter is to be spelled, its patch is to be
    looked at. The same of the first layer, at each letter of a text that the question names ("how much is the tea?"):
    its patches say in which row it stands, so that the last layer can ask for another text of that row. A token sees
    all grids until late, since of those beyond its top_k nothing is learned. With `bfloat16` the tower multiplies in
    that dtype, on CPUs that can faster than in any other.
    """

    learning = ("model", "heads")

    def __init__(
        self,
        model: FireboltForConditionalGeneration,
        processor: FireboltProcessor,
        drawing: Drawing,
        chances: Mapping[str, float],
        steps: int,
        amounts: Amounts,
        course: Course = Course(),
        bfloat16: bool = False,
    ):
        self.model, self.processor, self.drawing, self.chances = model, processor, drawing, dict(chances)
        self.steps, self.amounts, self.course, self.bfloat16 = steps, amounts, course, bfloat16
        self.heads = Heads(model.config.vision_config.hidden_size)
        # Embeddings and queries of the usual scale make all scores alike, and so all grids.
        nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
        sharpen_queries(model.model.connector)
        self.weighs = model.config.connector == "cmm" and model.config.grids == "patches"
        self.optimizers = Optimizers(
            nn.ModuleDict({"model": model, "heads": self.heads}),
            steps,
            matrix_lr=0.015,
            lr=3e-3,
            weight_decay=0.01,
            decay=0.9,
            warmup=50,
            is_matrix=lambda name: ".kernel." not in name,
        )

    def step(self, number: int) -> dict[str, float]:
        if number < self.course.reading * self.steps:
            batch = self.drawing.batch(number, self.amounts.pages, self.amounts.screens, self.chances)
            _, loss, read = self._read(batch)
            measured = {"loss": loss.item(), "read": read}
        else:
            loss, measured = self._answering(number)
        done = self.optimizers.step(loss, number)
        return measured if done else {**measured, "skipped": True}

    def _answering(self, number: int) -> tuple[Tensor, dict[str, float]]:
        early = number < self.course.lines * self.steps and "line" in self.chances
        chances = {"line": 1.0} if early else self.chances
        batch = self.drawing.batch(number, self.amounts.screens, self.amounts.pages, chances)
        every = number < self.course.all_grids * self.steps
        patches, reading, read = self._read(batch)
        patches = torch.lerp(patches.detach(), patches, HEARD)
        answers, right, grounding = self._answers(batch, patches, every)
        loss = answers + self.amounts.reading_loss * reading + self.amounts.grounding_loss * grounding
        return loss, {
            "loss": answers.item(),
            "letters": right,
            "read": read,
            "grounding": grounding.item(),
            "tokens": int(batch.rows.text.sum()),
        }

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """Patches [S,P,D], the loss of their labels, and the share of letters that are read right."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            patches = self.model.model.vision_tower(batch.pixels).last_hidden_state
            loss, read = self.heads.loss(patches, batch.labels)
        return patches.float(), loss, read

    def _answers(self, batch: Batch, patches: Tensor, every: bool) -> tuple[Tensor, float, Tensor]:
        """The cross-entropy of the answers, the share of their tokens that are right, and the grounding loss."""
        rows, model = batch.rows, self.model.model
        grounding, balance = patches.new_zeros(()), None
        if self.weighs:
            with seeing(model.connector, every):
                modulated, weights = self._modulated(rows, patches)
            hidden = model.language_model(inputs_embeds=modulated, attention_mask=rows.text).last_hidden_state
            grounding = grounding_loss(weights[-1], rows.look) + grounding_loss(weights[0], rows.named)
        else:
            pixels = self._inputs(batch)
            prompt = rows.answer.long().cumsum(-1) == 0
            options = {"attention_mask": rows.text, "prompt_mask": prompt, "use_cache": False}
            outputs = model(input_ids=rows.ids, **pixels, **options)
            hidden, balance = outputs.last_hidden_state, outputs.balance
        wanted = rows.answer[:, 1:]
        logits, ids = self.model.lm_head(hidden[:, :-1][wanted]), rows.ids[:, 1:][wanted]
        loss = F.cross_entropy(logits, ids)
        if balance is not None:
            loss = loss + self.model.balance_weight * balance
        return loss, (logits.argmax(-1) == ids).float().mean().item(), grounding

    def _modulated(self, rows: Rows, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the connector on questions with their answers: its output, and the weights [N,T,P] of each layer.

        Where there are as many questions about each screen, they share its patches.
        """
        first, model = self.model.model.connector, self.model.model
        counts = rows.scene.bincount()
        shared = bool((counts == counts[0]).all())
        grids = patches[: len(counts)] if shared else patches[rows.scene]
        boxes = patch_boxes_of(grids).expand(len(grids), -1, -1)
        x, weights = model.get_input_embeddings()(rows.ids), []
        second, first.second = first.second, None
        try:
            for layer in filter(None, (first, second)):
                x, w = layer(x, grids, rows.text, None, boxes, return_weights=True, shared=shared)
                weights.append(w)
        finally:
            first.second = second
        return x, weights

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        """The grids of each row's screen, as the model makes them of pixels."""
        pixels, side = batch.pixels, batch.pixels.shape[-1] // 2
        tiles = pixels.unflatten(-2, (2, side)).unflatten(-1, (2, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        seen = self.model.model.get_grids(pixels, tiles)
        rows = batch.rows.scene
        found = {"grids": seen.features[rows], "grid_mask": seen.mask[rows]}
        return found if seen.boxes is None else {**found, "grid_boxes": seen.boxes[rows]}

    def save(self, folder: Path) -> None:
        self.model.eval().save_pretrained(folder)
        self.processor.save_pretrained(folder)


def patch_boxes_of(patches: Tensor) -> Tensor:
    """Return the boxes [1,P,4] of the patches [S,P,D] of square images."""
    return patch_boxes(round(patches.shape[1] ** 0.5))[None]


@contextmanager
def seeing(connector: Connector, every: bool) -> Iterator[None]:
    """Let a connector and its second layer see all grids within the context, where `every`, in the place of top_k."""
    layers = [connector, *filter(None, [getattr(connector, "second", None)])] if every else []
    configs = [layer.config for layer in layers]
    for layer in layers:
        layer.config = replace(layer.config, top_k=None)
    try:
        yield
    finally:
        for layer, config in zip(layers, configs):
            layer.config = config


def grounding_loss(weights: Tensor, look: Tensor) -> Tensor:
    """Return - mean log of the sum of weights [N,T,P] on what is to be looked at [N,T,P], where there is any of it."""
    known = look.any(-1)
    if not known.any():
        return weights.new_zeros(())
    return -(weights * look).sum(-1)[known].clamp(min=LEAST_WEIGHT).log().mean()
