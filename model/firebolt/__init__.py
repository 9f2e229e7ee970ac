"""Firebolt-VL: every text token sees the image's grids through the connector, before the decoder reads it."""

from .answering_firebolt import FireboltForConditionalGeneration
from .configuration_firebolt import FireboltConfig
from .grounding import Grounding
from .image_processing_firebolt import FireboltImageProcessor
from .modeling_firebolt import FireboltModel
from .processing_firebolt import CHAT_TEMPLATE, FireboltProcessor, control_tokens
from .scoring_firebolt import FireboltForSequenceClassification

__all__ = [
    "CHAT_TEMPLATE",
    "FireboltConfig",
    "FireboltForConditionalGeneration",
    "FireboltForSequenceClassification",
    "FireboltImageProcessor",
    "FireboltModel",
    "FireboltProcessor",
    "Grounding",
    "control_tokens",
]
