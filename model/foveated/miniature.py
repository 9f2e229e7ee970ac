"""A small foveated model, on which the cache is checked with versions that nobody has seen."""

import torch
from torch import Tensor

from .configuration_foveated import FoveatedVLMConfig


def miniature_of(config: FoveatedVLMConfig) -> tuple[FoveatedVLMConfig, dict[str, Tensor]]:
    """Return a small configuration of the mode of `config`, and a padded batch for its model, one frame missing."""
    text = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    vision = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    small_config = FoveatedVLMConfig(
        vision_config={"model_type": "dinov2", **vision},
        text_config={"model_type": "llama", **text},
        query_dim=16,
        mode=config.mode,
    )
    columns = torch.arange(8)
    inputs = {
        "input_ids": (torch.tensor([3, 7])[:, None] * (columns + 2)) % 61,
        "attention_mask": (columns >= torch.tensor([3, 0])[:, None]).long(),
        "frames": torch.randn(2, 3, 3, 16, 16),
        "frame_mask": torch.tensor([[True, True, False], [True, True, True]]),
    }
    return small_config, inputs
