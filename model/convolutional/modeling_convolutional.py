"""A vision tower of convolutions that are products of matrices: windows of pixels, then blocks on the patches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_convolutional import PARTS, ConvolutionalTowerConfig

WINDOW = 4
SMALLEST_CONTRAST = 0.05
"""Added to the deviation of an image's levels, so that an even one stays even."""


class Stem(nn.Module):
    """Squares of p/4 pixels, then two linear maps of overlapping windows: pixels [n,C,H,W] to patches [n,H/p,W/p,D].

    A window is four by four of what lies below it, and begins at every second: of the first map a quarter of a patch
    and half as much on every side. Levels are taken from their image's mean, in its deviations.
    """

    def __init__(self, config: ConvolutionalTowerConfig):
        super().__init__()
        self.square = config.patch_size // 4
        self.first = nn.Linear(WINDOW**2 * config.num_channels * self.square**2, config.stem_size)
        self.second = nn.Linear(WINDOW**2 * config.stem_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        squares = F.pixel_unshuffle(self.standardised(pixels), self.square).permute(0, 2, 3, 1)
        quarters = F.relu(self.first(windows(squares)))
        return self.norm(self.second(windows(quarters)))

    @staticmethod
    def standardised(pixels: Tensor) -> Tensor:
        """Levels of each image [C,H,W] less their mean, in units of their deviation."""
        about = (1, 2, 3)
        pixels = pixels - pixels.mean(about, keepdim=True)
        return pixels / (pixels.square().mean(about, keepdim=True).sqrt() + SMALLEST_CONTRAST)


def windows(x: Tensor) -> Tensor:
    """Return the windows of x [n,h,w,C] that begin at every second place, zero beyond x: [n,h/2,w/2,16 C]."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    # Not `unfold`, whose gradient takes three times as long.
    rows = [padded[:, down : down + 2 * height : 2] for down in range(WINDOW)]
    return torch.cat([row[:, :, right : right + 2 * width : 2] for row in rows for right in range(WINDOW)], -1)


def offsets(reach: int) -> tuple[tuple[int, int], ...]:
    """Return where the parts of a block's channels come from, as (rows, columns) from a patch.

    Four are its own, eight those of the patches about it, four those of the patches `reach` away in its row and column.
    """
    about = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    far = [(0, -reach), (0, reach), (-reach, 0), (reach, 0)]
    return (*[(0, 0)] * (PARTS - len(about) - len(far)), *about, *far)


def shifted(x: Tensor, offsets: tuple[tuple[int, int], ...]) -> Tensor:
    """Return x [n,h,w,D], each part of whose channels is taken from another patch; zero where there is none."""
    height, width = x.shape[1:3]
    reach = max(max(abs(y), abs(x)) for y, x in offsets)
    parts = F.pad(x, (0, 0, reach, reach, reach, reach)).chunk(len(offsets), -1)
    seen = [
        part[:, reach + down : reach + down + height, reach + right : reach + right + width]
        for part, (down, right) in zip(parts, offsets)
    ]
    return torch.cat(seen, -1)


class Block(nn.Module):
    """x + MLP(LN(x shifted)), x [n,h,w,D]: a convolution whose kernel is one at a place for each part of the channels.

    Source: B. Wu et al., Shift: A Zero FLOP, Zero Parameter Alternative to Spatial Convolutions (arXiv 1711.08141),
    with the order of Z. Liu et al., A ConvNet for the 2020s (arXiv 2201.03545), section 2.
    """

    def __init__(self, config: ConvolutionalTowerConfig, reach: int):
        super().__init__()
        width = config.hidden_size
        self.offsets = offsets(reach)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.widen = nn.Linear(width, config.intermediate_size)
        self.narrow = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.gelu(self.widen(self.norm(shifted(x, self.offsets)))))


class ConvolutionalTower(PreTrainedModel):
    """Vision tower of convolutions: patches in reading order, each of which sees its surroundings.

    It has no positions: what it learns of a letter at one place holds at every other, so that it learns to read from
    few images, and an image of any size is seen as those that it was trained on. All that is learned are matrices, of
    which products are taken: CPUs do them several times as fast as other convolutions, in bfloat16 above all.
    """

    config: ConvolutionalTowerConfig
    config_class = ConvolutionalTowerConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = False
    _no_split_modules = ["Stem", "Block"]

    def __init__(self, config: ConvolutionalTowerConfig):
        super().__init__(config)
        self.stem = Stem(config)
        self.blocks = nn.ModuleList(Block(config, reach) for reach in config.reaches)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a layer so that its output is as large as its input; a block begins as almost nothing."""
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Stem):
            nn.init.kaiming_normal_(module.first.weight, nonlinearity="relu")
        elif isinstance(module, Block):
            nn.init.normal_(module.narrow.weight, std=0.02)

    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = True, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Return `last_hidden_state` [n,P,D] of images [n,C,H,W], and with a head `pooler_output` [n,D].

        P is that of whole patches; pixels beyond them are not looked at. `interpolate_pos_encoding` changes nothing, as
        there are no positions.
        """
        patch = self.config.patch_size
        height, width = (side // patch * patch for side in pixel_values.shape[-2:])
        x = self.stem(pixel_values[..., :height, :width])
        for block in self.blocks:
            x = block(x)
        patches = self.norm(x).flatten(1, 2)
        pooled = patches.mean(1) if self.config.vision_use_head else None
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=pooled)


__all__ = ["ConvolutionalTower"]
