"""The model that reads and its processor, untrained, or with the tower of a trained one."""

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ...model import (
    ConvolutionalTowerConfig,
    FireboltConfig,
    FireboltForConditionalGeneration,
    FireboltImageProcessor,
    FireboltProcessor,
)

PATCH = 8
VISION = {
    "model_type": ConvolutionalTowerConfig.model_type,
    "hidden_size": 128,
    "intermediate_size": 256,
    "stem_size": 64,
    # The last ones bring to a value what its label says, also from the other margin.
    "reaches": [2, 2, 3, 4, 8, 12],
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "block_auto_adjust_ff_dim": False,
    "max_position_embeddings": 128_000,
}
CMM = {"heads": 4, "head_dim": 32, "top_k": 8, "ssm": "s4", "dropout": 0.0}
# What else the modulator has: the question and the place in the answer steer each look, and a second layer asks with
# what the first has found.
STEERED = {"query": "state", "layers": 2}


def new_model(
    tokenizer: PreTrainedTokenizerBase, side: int, seed: int, connector: str, grids: str, cmm: dict[str, Any]
) -> FireboltForConditionalGeneration:
    """Make the untrained model of a seed; `cmm` are keys of the connector's configuration in the place of CMM's."""
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = FireboltConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), **ends},
        vision_config={**VISION, "image_size": side},
        cmm_config={**CMM, **(STEERED if connector == "cmm" else {}), **cmm},
        connector=connector,
        grids=grids,
    )
    torch.manual_seed(seed)
    model = FireboltForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**ends)
    return model


def take_tower(model: FireboltForConditionalGeneration, checkpoint: str) -> None:
    """Give a model the tower of a checkpoint, a folder. Raises ValueError for another folder or another tower."""
    if not Path(checkpoint).is_dir():
        raise ValueError(f"{checkpoint} is no folder; expected that of a trained model")
    try:
        other = FireboltForConditionalGeneration.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"{checkpoint} holds no model: {error}") from None
    found = {name: getattr(other.config.vision_config, name, None) for name in VISION}
    if found != VISION:
        raise ValueError(f"{checkpoint} has the tower {found}; expected {VISION}")
    model.model.vision_tower.load_state_dict(other.model.vision_tower.state_dict())


def new_processor(tokenizer: PreTrainedTokenizerBase, side: int) -> FireboltProcessor:
    """Make the processor of images of a side; tiles, of which only grids "views" see anything, are quarters."""
    size = {"height": side, "width": side}
    return FireboltProcessor(FireboltImageProcessor(size=size, tile_size=side // 2, max_tiles=4), tokenizer)
