"""FireboltConfig: the decoder, the vision tower and the layer between them."""

import difflib
from collections.abc import Iterable
from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..cmm import CMMConfig

CONNECTORS = ("cmm", "prepend", "cross_attend")
FUSIONS = ("replace", "concat", "pool")


@strict
class FireboltConfig(PreTrainedConfig):
    r"""Configuration of a Firebolt-VL model.

    Args:
        text_config: an `Lfm2Config`, or its fields as a dict: the decoder.
        vision_config: a `SiglipVisionConfig`, or its fields as a dict: the encoder whose pooled output is one grid.
        cmm_config: a `CMMConfig`, or some of its fields as a dict. `text_width` and `grid_width` default to the
            backbones' hidden sizes; other values are an error.
        connector: `"cmm"` (the Cross-Modal Modulator), or, to compare with, `"prepend"` or `"cross_attend"`.
        fusion: what the decoder gets from the CMM: `"replace"` (its output in the place of the text embeddings),
            `"concat"` (prompt, modulated prompt, answer) or `"pool"` (one pooled vector before the text).

    Raises:
        ValueError: a size that cannot be, an unknown connector or fusion, a fusion with a connector other than `"cmm"`,
            an unknown field or a conflicting width in `cmm_config`, a vision tower without a pooling head.
    """

    model_type = "firebolt_vl"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="lfm2"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model"),
    }
    keys_to_ignore_at_inference = ["past_key_values", "cache"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    cmm_config: dict | CMMConfig | None = None
    connector: str = "cmm"
    fusion: str = "replace"
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        check_keys(kwargs, FireboltConfig)
        super().__post_init__(**kwargs)
        if self.connector not in CONNECTORS:
            raise ValueError(f"connector: {self.connector!r} came, one of {', '.join(CONNECTORS)} is wanted")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion: {self.fusion!r} came, one of {', '.join(FUSIONS)} is wanted")
        if self.fusion != "replace" and self.connector != "cmm":
            raise ValueError(f"fusion: {self.fusion!r} goes with connector 'cmm' alone, {self.connector!r} came")
        check_sizes("text_config", self.text_config)
        check_sizes("vision_config", self.vision_config)
        if not getattr(self.vision_config, "vision_use_head", True):
            raise ValueError("vision_config: vision_use_head=False came; a grid is the output of the pooling head")
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self.cmm_config = self._resolved_cmm_config(self.cmm_config)

    def _resolved_cmm_config(self, given: dict | CMMConfig | None) -> dict:
        given = given.to_dict() if isinstance(given, CMMConfig) else dict(given or {})
        known = {field.name for field in fields(CMMConfig)}
        if unknown := sorted(set(given) - known):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"cmm_config: unknown {', '.join(unknown)}; {meant}known are {', '.join(sorted(known))}")
        widths = {"text_width": self.text_config.hidden_size, "grid_width": self.vision_config.hidden_size}
        for name, width in widths.items():
            if given.get(name, width) != width:
                raise ValueError(f"cmm_config: {name} {given[name]} came, the backbone's hidden size is {width}")
        return CMMConfig(**{**given, **widths}).to_dict()

    def connector_config(self) -> CMMConfig:
        """The connector's own configuration, as an object."""
        return CMMConfig.from_dict(self.cmm_config)


SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("image_size", "patch_size", "num_channels", "max_position_embeddings", "conv_L_cache"),
)


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


__all__ = ["FireboltConfig"]
