"""The models, the transformers way: importing this package registers them with the Auto classes and pipelines."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .configuration_firebolt import FireboltConfig
from .foveated import FoveatedImageProcessor, FoveatedProcessor, FoveatedVLM, FoveatedVLMConfig
from .grounding import Grounding
from .image_processing_firebolt import FireboltImageProcessor
from .modeling_firebolt import FireboltForConditionalGeneration, FireboltModel
from .prepacking import prepack_weights
from .processing_firebolt import CHAT_TEMPLATE, FireboltProcessor
from .quantization import logits_drift, quantize_int8

AutoConfig.register(FireboltConfig.model_type, FireboltConfig)
AutoModel.register(FireboltConfig, FireboltModel)
AutoModelForImageTextToText.register(FireboltConfig, FireboltForConditionalGeneration)
# The pipeline looks for the class in this table too, and logs an error about a class that is registered alone.
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[FireboltConfig.model_type] = FireboltForConditionalGeneration.__name__
# Under both backends' names: with torchvision or without it, the same class and the same pixels.
AutoImageProcessor.register(
    FireboltConfig, image_processor_classes={"pil": FireboltImageProcessor, "torchvision": FireboltImageProcessor}
)
AutoProcessor.register(FireboltConfig, FireboltProcessor)

AutoConfig.register(FoveatedVLMConfig.model_type, FoveatedVLMConfig)
AutoModel.register(FoveatedVLMConfig, FoveatedVLM)
AutoModelForImageTextToText.register(FoveatedVLMConfig, FoveatedVLM)
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[FoveatedVLMConfig.model_type] = FoveatedVLM.__name__
AutoImageProcessor.register(
    FoveatedVLMConfig, image_processor_classes={"pil": FoveatedImageProcessor, "torchvision": FoveatedImageProcessor}
)
AutoProcessor.register(FoveatedVLMConfig, FoveatedProcessor)

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
