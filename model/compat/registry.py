"""Making a model known to the Auto classes and to `pipeline`."""

import contextlib

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor


def register(config: type, model: type, answering: type, image_processor: type, processor: type) -> None:
    """Let the Auto classes find a model's classes by `config.model_type`; `answering` is the one with a head."""
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForImageTextToText.register(config, answering)
    # Under both backends' names: with torchvision or without it, the same class and the same pixels.
    classes = {"pil": image_processor, "torchvision": image_processor}
    AutoImageProcessor.register(config, image_processor_classes=classes)
    AutoProcessor.register(config, processor)
    # The pipeline looks for the class in this table too, and logs an error about a class that is registered alone.
    with contextlib.suppress(ImportError):
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as names

        names[config.model_type] = answering.__name__
