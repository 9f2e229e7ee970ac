"""The two stages: a vision tower that knows digits and colours, then all else of the foveated model around it."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from ...model import FoveatedProcessor, FoveatedVLM
from ..tiny.fusion import EMBEDDING_STD, Rows
from ..tiny.optimizers import Optimizers
from ..tiny.pool import NO_COLOUR, NO_DIGIT, glyphs
from ..tiny.small_job import SmallJob
from ..tiny.tower import Heads
from .pool import CARDS, Clips, normalised, with_cards

TOWER_BATCH, BATCH = 48, 64
BACKGROUND_SHARE = 0.15
QUERIES = ("q_static", "q_init")


class TowerJob(SmallJob):
    """A new DINOv2, `tower`, that learns from frames what each patch is part of.

    It stands for the one that a real foveated model starts from, whose patches know what they show. Linear heads,
    thrown away afterwards, read from each patch in a digit's box which digit it is, its colour, and its handwriting; of
    all other patches a share says that it is nothing.
    """

    learning = ("tower", "heads")

    def __init__(self, config: Dinov2Config, clips: Clips, steps: int, seed: int):
        torch.manual_seed(seed)
        self.clips, self.steps = clips, steps
        self.tower = Dinov2Model(config)
        self.heads = Heads(config.hidden_size, 1)
        self.written = glyphs()
        self.frames = clips.there.nonzero()
        self.patches = config.image_size // config.patch_size
        modules = nn.ModuleList([self.tower, self.heads])
        self.optimizers = Optimizers(modules, steps, matrix_lr=0.02, lr=3e-3, weight_decay=0.05, decay=0.5)

    def step(self, number: int) -> dict[str, float]:
        clip, frame = self.frames[torch.randint(len(self.frames), (TOWER_BATCH,))].unbind(1)
        clips = self.clips
        labels, colours, sources = (
            part.flatten()
            for part in of_patches(clips.labels[clip], clips.sources[clip], clips.boxes[clip, frame], self.patches)
        )
        seen = self.tower(pixel_values=normalised(clips.pixels[clip, frame])).last_hidden_state[:, 1:].flatten(0, 1)
        kept = (labels != NO_DIGIT) | (torch.rand(len(labels)) < BACKGROUND_SHARE)
        loss = self.heads.loss(seen[kept], labels[kept], colours[kept], sources[kept], self.written)
        done = self.optimizers.step(loss, number)
        return {"loss": loss.item()} if done else {"loss": loss.item(), "skipped": True}

    def save(self, folder: Path) -> None:
        self.tower.eval().save_pretrained(folder)


def of_patches(labels: Tensor, sources: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Digit, colour and handwriting at each of side x side patches, [n, side^2]: those of the box that its centre lies
    in; NO_DIGIT, NO_COLOUR and -1 where it lies in none. labels, sources [n,6] and boxes [n,6,4] are those of `Clips`.
    """
    centres = (torch.arange(side) + 0.5) / side
    y, x = centres[:, None].expand(side, side).flatten(), centres.repeat(side)
    top, left, bottom, right = boxes[:, :, None].unbind(-1)  # [n,6,1]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right) & (labels >= 0)[..., None]
    which, found = inside.int().argmax(1), inside.any(1)
    return (
        torch.where(found, labels.gather(1, which), NO_DIGIT),
        torch.where(found, which, NO_COLOUR),
        torch.where(found, sources.gather(1, which), -1),
    )


class LookJob(SmallJob):
    """`model` learns, in place, to answer which digit has a colour, in one mode; its vision tower is left as it is.

    texts: of each of 6 colours and 10 digits the question and its answer, as row 10 colour + digit.
    """

    def __init__(
        self, model: FoveatedVLM, processor: FoveatedProcessor, clips: Clips, cards: Tensor, texts: Rows, steps: int
    ):
        self.model, self.processor, self.clips, self.cards, self.texts = model, processor, clips, cards, texts
        self.steps = steps
        self.asked = (clips.labels >= 0).nonzero()
        # As in train/tiny: with weights of the usual size (0.02) all looks and all tokens are alike for long.
        bridges = (
            model.encoder.query_input_proj,
            model.encoder.output_proj,
            model.dino_to_llm,
            model.llm_to_query,
        )
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(std=EMBEDDING_STD)
            for bridge in bridges:
                bridge.weight.normal_(std=bridge.in_features**-0.5)
        model.encoder.dino.requires_grad_(False)
        self.optimizers = Optimizers(
            model,
            steps,
            matrix_lr=0.01,
            lr=2e-3,
            weight_decay=0.01,
            decay=0.6,
            is_matrix=lambda name: name not in QUERIES,
        )

    def step(self, number: int) -> dict[str, float]:
        clip, colour = self.asked[torch.randint(len(self.asked), (BATCH,))].unbind(1)
        clips = self.clips
        inks = self.cards[colour, torch.randint(CARDS, (BATCH,))]
        frames, mask = with_cards(clips.pixels[clip], clips.there[clip], inks)
        rows = self.texts[10 * colour + clips.labels[clip, colour]]
        loss = self.model(
            rows.ids,
            rows.text.long(),
            frames=frames,
            frame_mask=mask,
            loss_mask=rows.answer,
            use_cache=False,
        ).loss
        done = self.optimizers.step(loss, number)
        return {"loss": loss.item()} if done else {"loss": loss.item(), "skipped": True}

    def save(self, folder: Path) -> None:
        self.model.eval().save_pretrained(folder)
        self.processor.save_pretrained(folder)
