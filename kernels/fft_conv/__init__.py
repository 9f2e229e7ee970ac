"""Causal convolution of a sequence with one long kernel per channel."""

from .op import fft_conv

__all__ = ["fft_conv"]
