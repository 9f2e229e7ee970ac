"""Linear recurrence with diagonal complex modes."""

from .op import diagonal_scan

__all__ = ["diagonal_scan"]
