"""The model that a training by trl starts from, which of its parts learn, and what of it is written down."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

from ...cmm.connector import Connector
from ...model import (
    FireboltForConditionalGeneration,
    FireboltProcessor,
    FoveatedProcessor,
    FoveatedVLM,
    FoveatedVLMConfig,
)
from ...model.adapters import lora_targets, part_of
from ...model.checkpoint_files import CONFIG, read_json
from ...model.places import PlaceError, find, find_here
from ..errors import ConfigError
from ..models import merged

# Attributes of modules, in this package and in transformers, that a functional dropout is called with.
DROPOUTS = ("dropout", "attention_dropout", "dropout_prob")


def load_model(name: str, key: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model of a name, in float32, and its processor. Raises ConfigError, which says `key` for where it stood."""
    try:
        folder = find(name)
        described = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        check_whole(name, described, key)
        foveated = described.get("model_type") == FoveatedVLMConfig.model_type
        kind, processor = (
            (FoveatedVLM, FoveatedProcessor) if foveated else (FireboltForConditionalGeneration, FireboltProcessor)
        )
        model = kind.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        # What adapters will name as the model that they belong to.
        model.name_or_path = name if find_here(name) is None else str(folder.resolve())
        return model, processor.from_pretrained(folder, trust_remote_code=False)
    except ConfigError:
        raise
    except PlaceError as error:
        raise ConfigError(f"{key}: {error}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} is {name}, which cannot be loaded ({str(error).splitlines()[0]})") from error


def check_whole(name: str, described: dict, key: str) -> None:
    """Check that a checkpoint's weights are numbers that can learn, or have adapters added. Raises ConfigError."""
    if described.get("quantization_config"):
        raise ConfigError(
            f"{key} is {name}, whose weights are quantised; expected the model that it was made from, in float32, "
            "bfloat16 or float16: neither its weights nor adapters merged into them would keep what they learn"
        )


def choose_parts(model: nn.Module, parts: list[str]) -> None:
    """Leave gradients to the parts that learn; the head is one with the decoder's embeddings."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_((part_of(name) or "decoder") in parts)


def drop_nothing(model: nn.Module) -> None:
    """Switch off all dropout: what is sampled is what is scored, and the reference is the model at the start.

    trl's `disable_dropout` knows modules of the class nn.Dropout; here are what functions are called with, too.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, Connector):
            module.config = replace(module.config, dropout=0.0)
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def adapter_config(model: PreTrainedModel, parts: list[str], adapters: dict):
    """Low-rank adapters (peft) on the dense layers of some parts, the head left out. Raises ConfigError.

    `targets` are last names of layers; None is all.
    """
    from peft import LoraConfig

    dense = lora_targets(model, parts)
    targets = adapters["targets"]
    chosen = [name for name in dense if targets is None or name.rpartition(".")[2] in targets]
    missing = set(targets or ()) - {name.rpartition(".")[2] for name in dense}
    if missing or not chosen:
        known = sorted({name.rpartition(".")[2] for name in dense})
        raise ConfigError(
            f"lora.targets has {', '.join(sorted(missing)) or 'no layer'}; expected some of {', '.join(known)}, the "
            f"dense layers of {' and '.join(parts)}"
        )
    return LoraConfig(
        r=adapters["rank"],
        lora_alpha=adapters["alpha"],
        lora_dropout=adapters["dropout"],
        target_modules=chosen,
    )


def write_trained(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write a model, with the adapters in it merged, and its processor, as `save_pretrained` does."""
    model.save_pretrained(folder, state_dict=merged(model, model.state_dict()))
    processor.save_pretrained(folder)
