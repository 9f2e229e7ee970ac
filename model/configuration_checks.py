"""Checks of a configuration before a model is built of it."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("image_size", "patch_size", "num_channels", "max_position_embeddings", "conv_L_cache"),
)

QUANTIZED = ("int8", "int4")


def backbone(config: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    """Return a backbone's configuration, which is an object once the configuration that holds it is made."""
    assert isinstance(config, PreTrainedConfig)
    return config


def check_keys(given: Iterable[str], config_class: type[PreTrainedConfig]) -> None:
    """Raise ValueError for a key that is nearly one of a configuration's own: transformers would keep it unread."""
    own = set(config_class.__annotations__)
    for key in given:
        if near := difflib.get_close_matches(key, own, n=1, cutoff=0.8):
            raise ValueError(f"{config_class.__name__}: {key} is not one of its keys; did you mean {near[0]}?")


def check_quantized_kind(config: str, kind: str | None) -> None:
    """Raise ValueError where a configuration says that weights are held in a way that is none of ours."""
    if kind not in (None, *QUANTIZED):
        raise ValueError(f"{config}: quantized is {kind!r}; expected one of {', '.join(QUANTIZED)}, or None")


@contextmanager
def named_part(config: PreTrainedConfig) -> Iterator[None]:
    """Say which of the backbones' configurations holds a value of the wrong type, in a ValueError.

    transformers makes them of dicts one by one, and names the field alone.
    """
    try:
        yield
    except StrictDataclassError as error:
        for part in config.sub_configs_defaults:
            if not isinstance(getattr(config, part), PreTrainedConfig):
                reason = " ".join(str(error.__cause__ or error).split())
                raise ValueError(f"{type(config).__name__}: {part}: {reason}") from None
        raise


def check_sizes(part: str, config: PreTrainedConfig) -> None:
    """Raise ValueError where a backbone's sizes cannot be: transformers finds out by dividing by them.

    `part` is the backbone's place, as in "FireboltConfig: text_config".
    """
    for name in SIZES:
        size = getattr(config, name, None)
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"{part}.{name} is {size!r}; expected a whole number, at least 1")
    if (layers := getattr(config, "num_hidden_layers", 0)) < 0:
        raise ValueError(f"{part}.num_hidden_layers is {layers}; expected a whole number, at least 0")
    pairs = (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads"))
    for whole, of in pairs:
        size, parts = getattr(config, whole, None), getattr(config, of, None)
        own_width = whole == "hidden_size" and getattr(config, "head_dim", None) is not None
        if size is not None and parts is not None and size % parts and not own_width:
            raise ValueError(f"{part}.{of} is {parts}; expected a divisor of {whole}, {size}")
    patch, image = getattr(config, "patch_size", 1), getattr(config, "image_size", 1)
    if patch > image:
        raise ValueError(f"{part}.patch_size is {patch}; expected at most image_size, {image}")
