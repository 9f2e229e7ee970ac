"""The models, the transformers way: importing this package registers them with the Auto classes and pipelines."""

from .adapters import lora_targets
from .compat.registry import register, register_scoring, register_tower
from .convolutional import ConvolutionalTower, ConvolutionalTowerConfig
from .cpu.prepacking import prepack_weights
from .cpu.quantized_models import logits_drift, quantize_int4, quantize_int8
from .firebolt import (
    CHAT_TEMPLATE,
    FireboltConfig,
    FireboltForConditionalGeneration,
    FireboltForSequenceClassification,
    FireboltImageProcessor,
    FireboltModel,
    FireboltProcessor,
    Grounding,
)
from .foveated import FoveatedImageProcessor, FoveatedProcessor, FoveatedVLM, FoveatedVLMConfig
from .video import Video, read_video

register_tower(ConvolutionalTowerConfig, ConvolutionalTower)
register(FireboltConfig, FireboltModel, FireboltForConditionalGeneration, FireboltImageProcessor, FireboltProcessor)
register_scoring(FireboltConfig, FireboltForSequenceClassification)
register(FoveatedVLMConfig, FoveatedVLM, FoveatedVLM, FoveatedImageProcessor, FoveatedProcessor)

__all__ = [
    "CHAT_TEMPLATE",
    "ConvolutionalTower",
    "ConvolutionalTowerConfig",
    "FireboltConfig",
    "FireboltForConditionalGeneration",
    "FireboltForSequenceClassification",
    "FireboltImageProcessor",
    "FireboltModel",
    "FireboltProcessor",
    "FoveatedImageProcessor",
    "FoveatedProcessor",
    "FoveatedVLM",
    "FoveatedVLMConfig",
    "Grounding",
    "Video",
    "logits_drift",
    "lora_targets",
    "prepack_weights",
    "quantize_int4",
    "quantize_int8",
    "read_video",
]
