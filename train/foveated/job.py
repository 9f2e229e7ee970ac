"""The three stages as jobs: alignment on all text, answers alone, preferences."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ...model import FoveatedProcessor, FoveatedVLM
from ...model.foveated.image_processing_foveated import Clip
from ...model.video import read_video
from ..conversations import ConversationsJob
from ..data import Collator
from ..data.batches import MicroBatch
from ..data.chat import IGNORED, Tokens
from ..data.dataset import Conversations, Example
from .models import PARTS, optimizer_groups, start_model
from .parts import preference_losses, rate

BLANK_FRAMES = 2
BETA = 0.1


class FoveatedCollator(Collator):
    """Rows as `frames`, `frame_mask` and texts; one image is shown as the processor shows one, several and a video are
    frames. With `all_text` every token but the first is a label: the first has nothing before it."""

    def __init__(self, dataset: Conversations, processor: FoveatedProcessor, all_text: bool = False):
        super().__init__(dataset, processor)
        self.all_text = all_text

    def __call__(self, rows: Sequence[int]) -> MicroBatch:
        examples, problems = self._read(rows)
        if not examples:
            return MicroBatch(None, problems)
        frames = self.pictures(examples)
        if self.dataset.preferences:
            texts = [one.tokens.last_answer() for one in examples] + [one.rejected.last_answer() for one in examples]
            return PreferenceBatch({**self.text(texts), **frames}, problems)
        texts = [one.tokens for one in examples]
        if self.all_text:
            texts = [Tokens(tokens.ids, [IGNORED, *tokens.ids[1:]]) for tokens in texts]
        return MicroBatch({**self.text(texts), **frames}, problems)

    def pictures(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        clips = [Clip(one.images) if one.is_video or len(one.images) > 1 else one.images for one in examples]
        return dict(self.processor.image_processor(clips, return_tensors="pt")) if any(clips) else {}


@dataclass
class PreferenceBatch(MicroBatch):
    """N pairs: texts [2N,T], the chosen answers first; the frames are those of N rows."""

    @property
    def counted(self) -> int:
        return 0 if self.inputs is None else len(self.inputs["input_ids"]) // 2


class TextLoss(nn.Module):
    """The foveated model as a function from a micro-batch to the cross-entropy of its labels, summed."""

    def __init__(self, model: FoveatedVLM, mode: str, blank: Tensor, bf16: bool):
        """`blank` [1,T,3,S,S] are frames with nothing on them."""
        super().__init__()
        self.model = model
        self.mode = mode
        self.blank = (blank,)
        self.bf16 = bf16

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **frames: Tensor) -> Tensor:
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.model(
                input_ids,
                attention_mask,
                labels=labels,
                mode=self.mode,
                use_cache=False,
                num_items_in_batch=1,
                **frames,
            ).loss
            return loss + self._nothing(frames)

    def _nothing(self, frames: dict[str, Tensor]) -> Tensor | float:
        """0, by way of all that looks, where the micro-batch has fewer frames than it takes to move a query: processes
        that wait for one another's gradients would else wait for ever."""
        if frames and frames["frame_mask"].sum(-1).max() >= BLANK_FRAMES:
            return 0.0
        blank = self.blank[0].to(self.model.device)
        return 0 * self.model.get_visual_tokens(blank, mode=self.mode).tokens.float().sum()


class PreferenceLoss(TextLoss):
    """Sum of the preference losses of a micro-batch of pairs; `reference` is the model before it."""

    def __init__(self, model: FoveatedVLM, mode: str, blank: Tensor, bf16: bool, reference: FoveatedVLM, beta: float):
        super().__init__(model, mode, blank, bf16)
        # Hidden from nn.Module: it is not trained, wrapped, or kept in checkpoints.
        self.reference = (reference,)
        self.beta = beta
        self.preferred: list[Tensor] = []
        """Of each micro-batch since the last step: in how many pairs the chosen answer has the higher reward."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **frames: Tensor) -> Tensor:
        (reference,) = self.reference
        text = {"input_ids": input_ids, "attention_mask": attention_mask, "loss_mask": (labels != IGNORED).long()}
        chosen, rejected = ({name: tensor.chunk(2)[half] for name, tensor in text.items()} for half in range(2))
        with torch.autocast(input_ids.device.type, torch.bfloat16, enabled=self.bf16):
            losses, *rewards = preference_losses(self.model, reference, chosen, rejected, beta=self.beta, **frames)
            # Where every row was bad there is a pair without answers.
            there = (chosen["loss_mask"] + rejected["loss_mask"]).any(-1)
            self.preferred.append((rewards[0] > rewards[1])[there].sum())
            return losses[there].sum() + self._nothing(frames)


class FoveatedJob(ConversationsJob):
    """A stage of the foveated model's training.

    The gradient of a step is that of the mean over all labels of its `batch_size` rows (over its pairs, in the stage of
    preferences), however they are cut into processes and micro-batches.
    """

    def _start_model(self) -> tuple[FoveatedVLM, FoveatedProcessor]:
        model, processor = start_model(self.config)
        self.preferences = self.config.loss == "preferences"
        self.counted = {"text": "text_labels", "answers": "answer_tokens", "preferences": "pairs"}[self.config.loss]
        self.reference = copy.deepcopy(model).requires_grad_(False).eval() if self.preferences else None
        return model, processor

    def _reading(self) -> dict:
        return {"read_video": self._frames_of, "preferences": self.preferences}

    def _frames_of(self, file: Path) -> list[Image.Image]:
        return read_video(file, frames=self.config.frames).frames

    def collator(self, dataset: Conversations, processor: FoveatedProcessor) -> FoveatedCollator:
        return FoveatedCollator(dataset, processor, self.config.loss == "text")

    def prepare(self, accelerator: Accelerator) -> None:
        if self.reference is not None:
            self.reference.to(accelerator.device)
        super().prepare(accelerator)

    def _loss(self) -> TextLoss:
        config = self.config
        side = self.processor.image_processor.size["height"]
        blank = torch.zeros(1, BLANK_FRAMES, 3, side, side)
        told = (self.model, config.mode, blank, config.precision == "bf16")
        return (
            PreferenceLoss(*told, self.reference, BETA if config.beta is None else config.beta)
            if self.preferences
            else TextLoss(*told)
        )

    def _inputs(self, batch: MicroBatch) -> dict[str, Tensor]:
        inputs = super()._inputs(batch)
        if batch.inputs is None and self.preferences:
            inputs = {name: tensor.expand(2, -1) for name, tensor in inputs.items()}
        return inputs

    def _groups(self) -> list[dict]:
        return optimizer_groups(self.model, self.config)

    def _set_rates(self, number: int) -> float:
        """Returns the connector's, or that of the first part that learns."""
        config = self.config
        groups = self._all_groups()
        for group in groups:
            group["lr"] = rate(number, config.warmup_steps, self.steps, group["peak_lr"], config.min_lr)
        rates = {group["part"]: group["lr"] for group in groups}
        return rates.get("connector", next(iter(rates.values())))

    def step(self, number: int) -> dict[str, float]:
        """Take a step; with preferences also `preferred` is measured: the share of pairs whose chosen answer wins."""
        if not self.preferences:
            return super().step(number)
        preferred = self.accelerator.unwrap_model(self.loss).preferred
        preferred.clear()
        measured = super().step(number)
        total = self.accelerator.reduce(torch.stack(preferred).sum())
        return {**measured, "preferred": int(total) / max(measured["pairs"], 1)}

    @torch.no_grad()
    def validate(self) -> float | None:
        """exp of the mean over the labels (or pairs) held out, without what `lambda_coarse` adds to a step's loss."""
        config = self.model.config
        weight, config.lambda_coarse = config.lambda_coarse, 0.0
        try:
            return super().validate()
        finally:
            config.lambda_coarse = weight

    def _parts(self) -> dict[str, list[nn.Module]]:
        found = {"vision": self.model.encoder.dino, "decoder": self.model.llm}
        return {part: [found[part]] for part in PARTS if part in found}
