"""Making a model known to the Auto classes, to `pipeline`, and to what looks for classes in transformers by name."""

import contextlib
import sys
from types import ModuleType

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
)

# Tables of names that pipelines look into beside the registry; a class that is registered alone is logged as an error.
NAME_TABLES = ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES")


def register(config: type, model: type, answering: type, image_processor: type, processor: type) -> None:
    """Let the Auto classes find a model's classes by `config.model_type`; `answering` is the one with a head."""
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForImageTextToText.register(config, answering)
    if (any_to_any := getattr(sys.modules["transformers"], "AutoModelForMultimodalLM", None)) is not None:
        any_to_any.register(config, answering)
    # Under both backends' names: with torchvision or without it, the same class and the same pixels.
    classes = {"pil": image_processor, "torchvision": image_processor}
    AutoImageProcessor.register(config, image_processor_classes=classes)
    AutoProcessor.register(config, processor)
    with contextlib.suppress(ImportError):
        from transformers.models.auto import modeling_auto

        for table in NAME_TABLES:
            if (names := getattr(modeling_auto, table, None)) is not None:
                names[config.model_type] = answering.__name__
    _name_in_transformers(answering)


def register_scoring(config: type, model: type) -> None:
    """Let AutoModelForSequenceClassification, by which trl makes reward models, find a model's class that scores."""
    AutoModelForSequenceClassification.register(config, model)
    _name_in_transformers(model)


def _name_in_transformers(model: type) -> None:
    """Let `getattr(transformers, config.architectures[0])` find a class, as trl loads models and their references.

    transformers.processing_utils, which every processor imports, puts a new module in the place of transformers:
    whoever imported it before holds the old one, and gets the class too. One of transformers' own by that name stays.
    """
    importers = [vars(module) for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    # By type alone: some libraries' objects warn when they are asked anything.
    held = [one for names in importers for one in list(names.values()) if issubclass(type(one), ModuleType)]
    for module in {id(one): one for one in held if one.__name__ == "transformers"}.values():
        if not hasattr(module, model.__name__):
            setattr(module, model.__name__, model)


def register_tower(config: type, model: type) -> None:
    """Let AutoConfig and AutoModel, by which a backbone is made of its configuration, find a vision tower's classes."""
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
