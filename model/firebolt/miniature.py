"""A small Firebolt-VL, on which the cache is checked with versions that nobody has seen."""

import torch
from torch import Tensor

from ...cmm import RoutedConfig
from .configuration_firebolt import FireboltConfig


def miniature_of(config: FireboltConfig) -> tuple[FireboltConfig, dict[str, Tensor]]:
    """Return a small configuration of the kind of `config`, and a padded batch, one row without an image."""
    text = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
        "initializer_range": 0.3,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    small = {"text_width": 32, "grid_width": 24, "heads": 2, "head_dim": 8, "top_k": 2, "state_size": 4}
    connector = config.connector_config()
    if isinstance(connector, RoutedConfig):
        small |= {"expert_width": 8, "image_token_id": 5}
    taps = connector.kernel_taps and 4
    small_config = FireboltConfig(
        text_config=text,
        vision_config=vision,
        cmm_config={**connector.to_dict(), **small, "kernel_taps": taps},
        connector=config.connector,
        fusion=config.fusion,
        grids=config.grids,
    )
    columns = torch.arange(8)
    inputs = {
        "input_ids": (torch.tensor([3, 7, 11])[:, None] * (columns + 2)) % 61,
        "attention_mask": (columns >= torch.tensor([3, 0, 1])[:, None]).long(),
        "pixel_values": torch.randn(3, 3, 16, 16),
        "pixel_tiles": torch.randn(3, 4, 3, 8, 8),
        "image_mask": torch.tensor([True, True, False]),
    }
    if connector.grid_times:
        inputs |= {"image_numbers": torch.zeros(3, dtype=torch.int64), "image_times": torch.tensor([1.0, 2.5, 0.0])}
    inputs["input_ids"][:2, 3] = 5  # where an image would stand; else a word like any other
    return small_config, inputs
