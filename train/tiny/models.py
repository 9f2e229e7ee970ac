"""The embedded model and its processor, untrained."""

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, SiglipVisionModel

from ...model import FireboltConfig, FireboltForConditionalGeneration, FireboltImageProcessor, FireboltProcessor

IMAGE_SIDE = 64
VISION = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIDE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "block_auto_adjust_ff_dim": False,
    "max_position_embeddings": 128_000,
}
# Without dropout: it is shares of a weight that say which of two quarters a word means.
CMM = {"heads": 4, "head_dim": 32, "top_k": 4, "ssm": "s4", "dropout": 0.0}


def new_model(
    tokenizer: PreTrainedTokenizerBase, tower: SiglipVisionModel, seed: int
) -> FireboltForConditionalGeneration:
    """The untrained model of a seed around a trained vision tower."""
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = FireboltConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), **ends}, vision_config=VISION, cmm_config=CMM
    )
    torch.manual_seed(seed)
    model = FireboltForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.generation_config = GenerationConfig(**ends)
    return model


def new_processor(tokenizer: PreTrainedTokenizerBase) -> FireboltProcessor:
    size = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    return FireboltProcessor(FireboltImageProcessor(size=size, tile_size=IMAGE_SIDE // 2, max_tiles=4), tokenizer)
