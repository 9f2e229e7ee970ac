"""The training of the model that reads: its tower learns to read patches, then the rest of it learns to answer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cmm.connector import Connector
from ...evaluate.screens.scenes import Scene
from ...model import FireboltForConditionalGeneration, FireboltProcessor
from ...model.firebolt.grids import Grids
from ..tiny.fusion import EMBEDDING_STD, sharpen_queries
from ..tiny.optimizers import Optimizers
from ..tiny.small_job import SmallJob
from .batches import Drawing, Rows, pixels_of
from .reading import Heads

LEAST_WEIGHT = 1e-12
RATES = {"matrix_lr": 0.015, "lr": 3e-3, "weight_decay": 0.01, "decay": 0.9, "warmup": 50}


@dataclass(frozen=True)
class Course:
    """Order of what is learned, in shares of all steps.

    reading    until here the tower learns to read patches, and from then on it is left as it is
    lines      until here questions are about single lines alone, where these are asked about
    all_grids  until here a token sees all grids; from then on those of the configuration's top_k
    """

    reading: float = 0.15
    lines: float = 0.17
    all_grids: float = 0.87


@dataclass(frozen=True)
class Amounts:
    """Numbers of screens and pages, and the weight of a loss.

    screens  of a step that answers; in one that reads there are as many pages, and half as many screens
    pool     screens of all steps that ask about all kinds: questions are drawn anew each time, screens are not
    """

    screens: int = 16
    pool: int = 8192
    grounding_loss: float = 0.5


class ScreensJob(SmallJob):
    """A model that learns to read, in place: its tower, and then its connector and decoder, each with rates of its own.

    The loss of a step of the first part is that of the patches' labels (`reading.Heads`). Then it is the cross-entropy
    of the answer tokens and, where the connector weighs grids, `grounding_loss` times

        - mean log sum of w over the next letter's patches

    of the last layer, at the token before each letter of an answer: where a letter is to be spelled, its patch is to be
    looked at. The same of the first layer, at each letter of a text that the question names ("how much is the tea?"):
    its patches say in which row it stands, so that the last layer can ask for another text of that row. A token sees
    all grids until late, since of those beyond its top_k nothing is learned. With `bfloat16` the tower multiplies in
    that dtype, on CPUs that can faster than in any other.

    What the tower makes of a screen of the pool is kept in half precision when it is made first.
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
        self.reading = math.ceil(course.reading * steps)
        tower = model.model.vision_tower
        rest = {name: part for name, part in model.model.named_children() if part is not tower}
        self.tower_optimizers = self._optimizers({"tower": tower, "heads": self.heads}, self.reading)
        self.optimizers = self._optimizers({**rest, "lm_head": model.lm_head}, steps - self.reading)
        self.kept: dict[int, Grids] = {}

    def _optimizers(self, modules: dict[str, nn.Module], steps: int) -> Optimizers:
        return Optimizers(nn.ModuleDict(modules), steps, is_matrix=lambda name: ".kernel." not in name, **RATES)

    def schedules(self) -> Sequence[Optimizers]:
        return [self.tower_optimizers, self.optimizers]

    def step(self, number: int) -> dict[str, float]:
        if number < self.reading:
            loss, measured = self._read(number)
            done = self.tower_optimizers.step(loss, number)
        else:
            loss, measured = self._answer(number)
            done = self.optimizers.step(loss, number - self.reading)
        return measured if done else {**measured, "skipped": True}

    def _read(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of patches' labels, and the share of letters that are read right."""
        amount = self.amounts.screens
        pixels, labels = self.drawing.reading(number, max(1, amount // 2), amount, self.chances)
        with self._precision():
            patches = self.model.model.vision_tower(pixels).last_hidden_state
            loss, read = self.heads.loss(patches, labels)
        return loss, {"loss": loss.item(), "read": read}

    def _answer(self, number: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step that answers, and what is told of it."""
        amount, pool = self.amounts.screens, max(1, self.amounts.pool // self.amounts.screens)
        if number < self.course.lines * self.steps and "line" in self.chances:
            scenes = self.drawing.scenes(pool + number, amount, {"line": 1.0})
            seen = self._see(scenes)
        else:
            scenes = self.drawing.scenes(number % pool, amount, self.chances)
            seen = self._kept(number % pool, scenes)
        rows = self.drawing.questions_about(scenes, number)
        every = number < self.course.all_grids * self.steps
        answers, right, grounding = self._losses(rows, seen, every)
        return answers + self.amounts.grounding_loss * grounding, {
            "loss": answers.item(),
            "letters": right,
            "grounding": grounding.item(),
            "tokens": int(rows.text.sum()),
        }

    def _kept(self, number: int, scenes: Sequence[Scene]) -> Grids:
        """The grids of the pool's screens of a number, in half precision from the first time on."""
        if number not in self.kept:
            seen = self._see(scenes)
            self.kept[number] = seen._replace(features=seen.features.half())
        kept = self.kept[number]
        return kept._replace(features=kept.features.float())

    @torch.no_grad()
    def _see(self, scenes: Sequence[Scene]) -> Grids:
        """The grids of screens as the model makes them of pixels; tiles, which not all see, are quarters."""
        pixels = pixels_of(scenes)
        side = pixels.shape[-1] // 2
        tiles = pixels.unflatten(-2, (2, side)).unflatten(-1, (2, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        with self._precision():
            seen = self.model.model.get_grids(pixels, tiles)
        return seen._replace(features=seen.features.float())

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16)

    def _losses(self, rows: Rows, seen: Grids, every: bool) -> tuple[Tensor, float, Tensor]:
        """The cross-entropy of the answers, the share of their tokens that are right, and the grounding loss."""
        model = self.model.model
        grounding, balance = torch.zeros(()), None
        if self.weighs:
            with seeing(model.connector, every):
                modulated, weights = self._modulated(rows, seen)
            hidden = model.language_model(inputs_embeds=modulated, attention_mask=rows.text).last_hidden_state
            grounding = grounding_loss(weights[-1], rows.look) + grounding_loss(weights[0], rows.named)
        else:
            grids = {"grids": seen.features[rows.scene], "grid_mask": seen.mask[rows.scene]}
            if seen.boxes is not None:
                grids["grid_boxes"] = seen.boxes[rows.scene]
            prompt = rows.answer.long().cumsum(-1) == 0
            options = {"attention_mask": rows.text, "prompt_mask": prompt, "use_cache": False}
            outputs = model(input_ids=rows.ids, **grids, **options)
            hidden, balance = outputs.last_hidden_state, outputs.balance
        wanted = rows.answer[:, 1:]
        logits, ids = self.model.lm_head(hidden[:, :-1][wanted]), rows.ids[:, 1:][wanted]
        loss = F.cross_entropy(logits, ids)
        if balance is not None:
            loss = loss + self.model.balance_weight * balance
        return loss, (logits.argmax(-1) == ids).float().mean().item(), grounding

    def _modulated(self, rows: Rows, seen: Grids) -> tuple[Tensor, list[Tensor]]:
        """Run the connector on questions with their answers: its output, and the weights [N,T,P] of each layer.

        Where there are as many questions about each screen, they share its patches.
        """
        first, model = self.model.model.connector, self.model.model
        counts = rows.scene.bincount()
        shared = bool((counts == counts[0]).all())
        screens = torch.arange(len(counts)) if shared else rows.scene
        boxes = None if seen.boxes is None else seen.boxes[screens]
        x, weights = model.get_input_embeddings()(rows.ids), []
        second, first.second = first.second, None
        try:
            for layer in filter(None, (first, second)):
                x, w = layer(x, seen.features[screens], rows.text, None, boxes, return_weights=True, shared=shared)
                weights.append(w)
        finally:
            first.second = second
        return x, weights

    def save(self, folder: Path) -> None:
        self.model.eval().save_pretrained(folder)
        self.processor.save_pretrained(folder)


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
