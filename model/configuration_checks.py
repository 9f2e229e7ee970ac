"""What of a configuration can be seen to be wrong before a model is built of it."""

import difflib
from collections.abc import Iterable

from transformers import PreTrainedConfig

SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("image_size", "patch_size", "num_channels", "max_position_embeddings", "conv_L_cache"),
)


def backbone(config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """Return a backbone's configuration, which is an object once the configuration that holds it is made."""
    assert isinstance(config, PreTrainedConfig)
    return config


def check_keys(given: Iterable[str], config_class: type[PreTrainedConfig]) -> None:
    """Raise ValueError for a key that is nearly one of a configuration's own: transformers would keep it unread."""
    own = set(config_class.__annotations__)
    for key in given:
        if near := difflib.get_close_matches(key, own, n=1, cutoff=0.8):
            raise ValueError(f"{key}: there is no such key; did you mean {near[0]}?")


def check_sizes(part: str, config: PreTrainedConfig) -> None:
    """Raise ValueError where a backbone's sizes cannot be: transformers finds out by dividing by them."""
    for name in SIZES:
        size = getattr(config, name, None)
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"{part}: {name}={size!r} came, a whole number from 1 is wanted")
    if (layers := getattr(config, "num_hidden_layers", 0)) < 0:
        raise ValueError(f"{part}: num_hidden_layers={layers} came, a whole number from 0 is wanted")
    pairs = (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads"))
    for whole, of in pairs:
        size, parts = getattr(config, whole, None), getattr(config, of, None)
        own_width = whole == "hidden_size" and getattr(config, "head_dim", None) is not None
        if size is not None and parts is not None and size % parts and not own_width:
            raise ValueError(f"{part}: {of}={parts} came, a divisor of {whole}={size} is wanted")
    patch, image = getattr(config, "patch_size", 1), getattr(config, "image_size", 1)
    if patch > image:
        raise ValueError(f"{part}: patch_size={patch} came, at most image_size={image} is wanted")
