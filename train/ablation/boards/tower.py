"""The vision tower of the boards, pretrained once and then frozen, and the grids that it gives of a board.

It stands for the SigLIP that a real model starts from: it knows digits and colours, and nothing of questions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from ....cmm.positions import default_boxes, patch_boxes
from ....evaluate.digits import COLOURS
from .scenes import CELL_SIDE, CELLS_A_SIDE, DIGITS, SIDE, Boards, draw_boards, sample_boards

VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": CELL_SIDE,
}
TILES_A_SIDE = 2
TILE_CELLS = (CELLS_A_SIDE // TILES_A_SIDE) ** 2
STEPS, BATCH, RATE, WARMUP = 1500, 32, 3e-3, 50
SEED = 7


def tiles(x: Tensor, n: int = TILES_A_SIDE) -> Tensor:
    """The n x n tiles of images [N,C,S,S] in reading order, [n^2 N,C,S/n,S/n]."""
    side = x.shape[-1] // n
    return x.unflatten(-2, (n, side)).unflatten(-1, (n, side)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


class Readings(nn.Module):
    """Linear readings of digit and colour, or that there is none, of `cells` cells from one vector."""

    def __init__(self, width: int, cells: int):
        super().__init__()
        self.cells = cells
        self.digit = nn.Linear(width, cells * (DIGITS + 1))
        self.colour = nn.Linear(width, cells * (len(COLOURS) + 1))

    def loss(self, x: Tensor, digits: Tensor, colours: Tensor) -> Tensor:
        """x [M,D], digits and colours [M,cells], EMPTY being the last class."""
        digit, colour = self.digit(x).view(-1, DIGITS + 1), self.colour(x).view(-1, len(COLOURS) + 1)
        return F.cross_entropy(digit, digits.flatten() % (DIGITS + 1)) + F.cross_entropy(
            colour, colours.flatten() % (len(COLOURS) + 1)
        )


class Pretraining(nn.Module):
    """A new tower with the readings that it learns by: of each patch its cell; of each tile's pooled vector its four
    cells; of the whole image's pooled vector how many cells have each digit and colour."""

    def __init__(self):
        super().__init__()
        config = SiglipVisionConfig(**VISION)
        self.tower = SiglipVisionModel(config)
        width = config.hidden_size
        self.of_patch, self.of_tile = Readings(width, 1), Readings(width, TILE_CELLS)
        self.of_all = nn.Linear(width, DIGITS + len(COLOURS))

    def loss(self, boards: Boards, images: Tensor) -> Tensor:
        digits, colours = boards.digits, boards.colours
        whole, tiled = self.tower(pixel_values=images), pooled(self.tower, tiles(images))
        loss = self.of_patch.loss(whole.last_hidden_state.flatten(0, 1), digits.view(-1, 1), colours.view(-1, 1))
        of_tiles = [tiles(x.view(-1, 1, CELLS_A_SIDE, CELLS_A_SIDE)).flatten(1) for x in (digits, colours)]
        loss = loss + self.of_tile.loss(tiled, *of_tiles)
        counts = [(x[:, :, None] == torch.arange(n)).sum(1) for x, n in ((digits, DIGITS), (colours, len(COLOURS)))]
        return loss + 0.1 * F.mse_loss(self.of_all(whole.pooler_output), torch.cat(counts, 1).float())


def pooled(tower: SiglipVisionModel, views: Tensor) -> Tensor:
    return tower(pixel_values=views, interpolate_pos_encoding=True).pooler_output


def pretrain(steps: int = STEPS, report=None) -> SiglipVisionModel:
    """Train the tower, the same on every call."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    learning = Pretraining()
    optimizer = torch.optim.AdamW(learning.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 - step / steps)
        boards = sample_boards(BATCH, "train", generator)
        loss = learning.loss(boards, draw_boards(boards, generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learning.parameters(), 1.0)
        optimizer.step()
        if report:
            report(step, loss.item(), learning)
    return learning.tower.eval().requires_grad_(False)


VIEWS = 1 + TILES_A_SIDE**2


def boxes(grids: str) -> Tensor:
    """[G,4] of grids "views", "patches" or "both"."""
    parts = {"views": default_boxes(VIEWS), "patches": patch_boxes(CELLS_A_SIDE)}
    return torch.cat(list(parts.values())) if grids == "both" else parts[grids]


@torch.no_grad()
def encode(tower: SiglipVisionModel, images: Tensor, grids: str) -> Tensor:
    """Encode images as grids [N,G,D_v]: pooled views of the whole and of 2 x 2 tiles, the 16 patches, or both.

    Pooled vectors, which this tower makes two to four times as large as patches, are brought to the size of their
    board's patches: else a look would go to them for their size, or be so sharp from the start that it stays.
    """
    whole = tower(pixel_values=images)
    patches = whole.last_hidden_state
    if grids == "patches":
        return patches
    views = [whole.pooler_output[:, None], pooled(tower, tiles(images)).unflatten(0, (len(images), -1))]
    views = [x * (_rms(patches) / _rms(x)) for x in views]
    return torch.cat([*views, patches] if grids == "both" else views, 1)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean((1, 2), keepdim=True).sqrt()
