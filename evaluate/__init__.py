"""Benchmarks of vision-language models: their metrics, and the exam of the embedded model."""

from .metrics.mmbench import mmbench
from .metrics.mmmu import mmmu
from .metrics.text import anls, exact_match, word_f1
from .metrics.vqa import vqa_accuracy
from .metrics.yes_no import mme, pope

__all__ = ["anls", "exact_match", "mmbench", "mme", "mmmu", "pope", "vqa_accuracy", "word_f1"]
