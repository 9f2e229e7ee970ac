"""ConvolutionalTowerConfig: sizes of a convolutional vision tower."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..configuration_checks import check_keys, check_sizes

PARTS = 16
"""Parts of a patch's channels, each of which comes from a patch of its own (`modeling_convolutional.offsets`)."""


@strict
class ConvolutionalTowerConfig(PreTrainedConfig):
    r"""Configuration of a convolutional vision tower.

    Args:
        hidden_size: width D_v of a patch, a multiple of 16.
        intermediate_size: hidden width of a block's MLP.
        stem_size: width of what the stem sees of each quarter of a patch.
        reaches: of each block, how many patches away the farthest lie that it sees, in a row and in a column.
        patch_size: side of a patch in pixels, a multiple of 4.
        image_size: side of the images that it was trained on; it sees any other as well.
        num_channels: channels of an image.
        layer_norm_eps: of every norm.
        vision_use_head: whether there is a pooled vector of each view, the mean of its patches.

    Raises:
        ValueError: a size that cannot be.
    """

    model_type = "firebolt_convolutional_tower"

    hidden_size: int = 128
    intermediate_size: int = 256
    stem_size: int = 64
    reaches: list[int] = field(default_factory=lambda: [2, 2, 3, 4, 8, 12])
    patch_size: int = 8
    image_size: int = 192
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = True

    def __post_init__(self, **kwargs):
        check_keys(kwargs, ConvolutionalTowerConfig)
        super().__post_init__(**kwargs)
        owner = type(self).__name__
        check_sizes(owner, self)
        if self.stem_size < 1:
            raise ValueError(f"{owner}: stem_size is {self.stem_size}; expected a whole number, at least 1")
        if self.hidden_size % PARTS:
            raise ValueError(f"{owner}: hidden_size is {self.hidden_size}; expected a multiple of {PARTS}")
        if self.patch_size % 4:
            raise ValueError(f"{owner}: patch_size is {self.patch_size}; expected a multiple of 4")
        if not self.reaches or min(self.reaches) < 1:
            raise ValueError(
                f"{owner}: reaches is {self.reaches}; expected whole numbers, at least 1, one for each block"
            )

    @property
    def num_hidden_layers(self) -> int:
        """The number of blocks."""
        return len(self.reaches)


__all__ = ["ConvolutionalTowerConfig"]
