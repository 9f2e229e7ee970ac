"""Training data: JSON lines of conversations about images, read with care, in batches of like length."""

from ...files.problems import BadRow, Problem, Problems, TooManyBadRows
from .batches import BatchOrder, Collator, PackedCollator
from .dataset import Conversations

__all__ = [
    "BadRow",
    "BatchOrder",
    "Collator",
    "Conversations",
    "PackedCollator",
    "Problem",
    "Problems",
    "TooManyBadRows",
]
