"""A small convolutional vision tower, which learns to read in minutes where a SigLIP of its size does not."""

from .configuration_convolutional import ConvolutionalTowerConfig
from .modeling_convolutional import ConvolutionalTower

__all__ = ["ConvolutionalTower", "ConvolutionalTowerConfig"]
