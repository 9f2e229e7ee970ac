"""Pretraining of the vision tower: it stands for the SigLIP that a real Firebolt-VL starts from.

A SigLIP tower comes to the fusion knowing what things look like. This one learns it here, on the same views that it
will give grids of: from a tile's pooled vector linear heads, thrown away afterwards, read which digit has its centre in
the tile, its colour, and its handwriting as 8 x 8 pixels; from the global view's, the same for each quarter. The
handwriting is what makes it quick: 64 numbers a digit teach more than one label does.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from .optimizers import Optimizers
from .pool import NO_COLOUR, NO_DIGIT, Pool, global_views, glyphs, tiles
from .small_job import SmallJob

BATCH = 64
# Global views only come when tiles are known: together from the start, neither is learned in the same time.
TILES_ALONE = 0.5


class Heads(nn.Module):
    """Linear readings of `quarters` quarters from one pooled vector."""

    def __init__(self, width: int, quarters: int):
        super().__init__()
        self.digit = nn.Linear(width, quarters * (NO_DIGIT + 1))
        self.colour = nn.Linear(width, quarters * (NO_COLOUR + 1))
        self.glyph = nn.Linear(width, quarters * 64)

    def loss(self, pooled: Tensor, labels: Tensor, colours: Tensor, sources: Tensor, written: Tensor) -> Tensor:
        """Cross-entropies of digit and colour and squared error of the handwriting, summed over its 64 pixels."""
        digit = self.digit(pooled).view(-1, NO_DIGIT + 1)
        colour = self.colour(pooled).view(-1, NO_COLOUR + 1)
        there = sources >= 0
        glyph = self.glyph(pooled).view(-1, 64)[there]
        return (
            F.cross_entropy(digit, labels)
            + F.cross_entropy(colour, colours)
            + 64 * F.mse_loss(glyph, written[sources[there]])
        )


class TowerJob(SmallJob):
    """A new vision tower, `tower`, that learns digits and colours from the scenes of a pool."""

    learning = ("tower", "heads")

    def __init__(self, config: SiglipVisionConfig, pool: Pool, steps: int, seed: int):
        torch.manual_seed(seed)
        self.pool, self.steps = pool, steps
        self.tower = SiglipVisionModel(config)
        self.heads = nn.ModuleList([Heads(config.hidden_size, 1), Heads(config.hidden_size, 4)])
        self.written = glyphs()
        modules = nn.ModuleList([self.tower, *self.heads])
        self.optimizers = Optimizers(modules, steps, matrix_lr=0.01, lr=3e-3, weight_decay=0.05, decay=0.5)

    def step(self, number: int) -> dict[str, float]:
        pool, (tile_heads, global_heads) = self.pool, self.heads
        rows = torch.randint(len(pool.pixels), (BATCH,))
        views = global_views(pool.pixels[rows])
        targets = [getattr(pool, name)[rows].flatten() for name in ("labels", "colours", "sources")]
        loss = tile_heads.loss(pooled(self.tower, tiles(views)), *targets, self.written)
        if number >= TILES_ALONE * self.steps:
            loss = loss + global_heads.loss(pooled(self.tower, views), *targets, self.written)
        done = self.optimizers.step(loss, number)
        return {"loss": loss.item()} if done else {"loss": loss.item(), "skipped": True}

    def save(self, folder: Path) -> None:
        self.tower.eval().save_pretrained(folder)


def pooled(tower: SiglipVisionModel, views: Tensor) -> Tensor:
    return tower(pixel_values=views, interpolate_pos_encoding=True).pooler_output


@torch.no_grad()
def encode(tower: SiglipVisionModel, pixels: Tensor, batch: int = 500) -> Tensor:
    """The grids [N,5,D_v] of scenes: the global view, then the four tiles."""
    grids = []
    for part in pixels.split(batch):
        views = global_views(part)
        quarters = pooled(tower, tiles(views)).unflatten(0, (-1, 4))
        grids.append(torch.cat([pooled(tower, views)[:, None], quarters], dim=1))
    return torch.cat(grids)
