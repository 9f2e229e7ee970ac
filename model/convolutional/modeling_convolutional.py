"""A vision tower of convolutions: a strided stem, then blocks on the patches, all of them alike."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_convolutional import ConvolutionalTowerConfig


class Stem(nn.Module):
    """Strided convolutions from pixels [n,C,H,W] to patches [n,H/p,W/p,D].

    Each halves the side; the widths are D/4, D/2, then D. At a quarter of the side one more, with a residual, refines
    what strokes there are before they are put together. Each is normalised over its whole image, whatever the contrast.
    """

    def __init__(self, config: ConvolutionalTowerConfig):
        super().__init__()
        width = config.hidden_size
        steps = config.patch_size.bit_length() - 1
        widths = (config.num_channels, width // 4, width // 2, *[width] * (steps - 2))
        self.halvings = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, wide, eps=config.layer_norm_eps) for wide in widths[1:])
        self.refine = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.refine_norm = nn.GroupNorm(1, width // 2, eps=config.layer_norm_eps)
        self.project = nn.Linear(widths[-1], width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for number, (halving, norm) in enumerate(zip(self.halvings, self.norms)):
            x = F.gelu(norm(halving(x)), approximate="tanh")
            if number == 1:
                x = x + F.gelu(self.refine_norm(self.refine(x)), approximate="tanh")
        return self.norm(self.project(x.permute(0, 2, 3, 1)))


class Block(nn.Module):
    """x + MLP(LN(depthwise convolution of x)), x [n,h,w,D].

    Source: Z. Liu et al., A ConvNet for the 2020s (arXiv 2201.03545), section 2.
    """

    def __init__(self, config: ConvolutionalTowerConfig):
        super().__init__()
        width, side = config.hidden_size, config.kernel_size
        self.look = nn.Conv2d(width, width, side, padding=side // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.widen = nn.Linear(width, config.intermediate_size)
        self.narrow = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.look(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.narrow(F.gelu(self.widen(self.norm(seen)), approximate="tanh"))


class ConvolutionalTower(PreTrainedModel):
    """Vision tower of convolutions: patches in reading order, each of which sees its surroundings.

    It has no positions: what it learns of a letter at one place holds at every other, so that it learns to read from
    few images, and an image of any size is seen as those that it was trained on.
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
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a layer so that its output is as large as its input; a block begins as almost nothing."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
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
