"""The models, the transformers way: importing this package registers them with the Auto classes and pipelines."""

from .compat.registry import register
from .configuration_firebolt import FireboltConfig
from .foveated import FoveatedImageProcessor, FoveatedProcessor, FoveatedVLM, FoveatedVLMConfig
from .grounding import Grounding
from .image_processing_firebolt import FireboltImageProcessor
from .modeling_firebolt import FireboltForConditionalGeneration, FireboltModel
from .prepacking import prepack_weights
from .processing_firebolt import CHAT_TEMPLATE, FireboltProcessor
from .quantization import logits_drift, quantize_int8

register(FireboltConfig, FireboltModel, FireboltForConditionalGeneration, FireboltImageProcessor, FireboltProcessor)
register(FoveatedVLMConfig, FoveatedVLM, FoveatedVLM, FoveatedImageProcessor, FoveatedProcessor)

__all__ = [
    "CHAT_TEMPLATE",
    "FireboltConfig",
    "FireboltForConditionalGeneration",
    "FireboltImageProcessor",
    "FireboltModel",
    "FireboltProcessor",
    "FoveatedImageProcessor",
    "FoveatedProcessor",
    "FoveatedVLM",
    "FoveatedVLMConfig",
    "Grounding",
    "logits_drift",
    "prepack_weights",
    "quantize_int8",
]
