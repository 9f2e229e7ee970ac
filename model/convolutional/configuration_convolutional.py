"""ConvolutionalTowerConfig: sizes of a convolutional vision tower."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..configuration_checks import check_keys, check_sizes


@strict
class ConvolutionalTowerConfig(PreTrainedConfig):
    r"""Configuration of a convolutional vision tower.

    Args:
        hidden_size: width D_v of a patch, a multiple of 4.
        intermediate_size: hidden width of a block's MLP.
        num_hidden_layers: how many blocks follow the stem.
        kernel_size: side of a block's depthwise convolution in patches, an odd number: how far a patch sees in it.
        patch_size: side of a patch in pixels, a power of two from 4: a stem of as many halvings.
        image_size: side of the images that it was trained on; it sees any other as well.
        num_channels: channels of an image.
        layer_norm_eps: of every norm.
        vision_use_head: whether there is a pooled vector of each view, the mean of its patches.

    Raises:
        ValueError: a size that cannot be.
    """

    model_type = "firebolt_convolutional_tower"

    hidden_size: int = 96
    intermediate_size: int = 192
    num_hidden_layers: int = 4
    kernel_size: int = 7
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
        if self.hidden_size % 4:
            raise ValueError(f"{owner}: hidden_size is {self.hidden_size}; expected a multiple of 4")
        if self.patch_size < 4 or self.patch_size & (self.patch_size - 1):
            raise ValueError(f"{owner}: patch_size is {self.patch_size}; expected a power of two, at least 4")
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"{owner}: kernel_size is {self.kernel_size}; expected an odd number, at least 1")


__all__ = ["ConvolutionalTowerConfig"]
