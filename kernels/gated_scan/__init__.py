"""Linear recurrence whose real decay is an input."""

from .op import gated_scan

__all__ = ["gated_scan"]
