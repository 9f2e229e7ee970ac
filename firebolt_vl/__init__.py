"""Firebolt-VL: a fast, small vision-language model, its drop-in modulator layer and the kernels under it."""

from .version import __version__

__all__ = ["__version__"]
