"""Engines: ways to answer a question about an image, of which PyTorch is one."""

from .loading import ENGINES, load_engine

__all__ = ["ENGINES", "load_engine"]
