"""FireboltConfig: the decoder, the vision tower and the layer between them."""

import copy
import difflib
from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...cmm import CMMConfig, RoutedConfig
from ...cmm.config import MODULATOR_FIELDS, check_defaults
from ..configuration_checks import backbone, check_keys, check_quantized_kind, check_sizes, named_part

CONNECTORS = ("cmm", "prepend", "cross_attend", "routed")
FUSIONS = ("replace", "concat", "pool")
GRIDS = ("views", "patches", "both")
NO_TOKEN = -1


def connector_config_class(connector: str | None) -> type[CMMConfig]:
    """Return the class of a connector's own configuration."""
    return RoutedConfig if connector == "routed" else CMMConfig


@strict
class FireboltConfig(PreTrainedConfig):
    r"""Configuration of a Firebolt-VL model.

    Args:
        text_config: an `Lfm2Config`, or its fields as a dict: the decoder.
        vision_config: a `SiglipVisionConfig`, or its fields as a dict: the encoder of the images.
        cmm_config: a `CMMConfig` (with connector `"routed"` a `RoutedConfig`), or some of its fields as a dict.
            `text_width` and `grid_width` default to the backbones' hidden sizes; other values are an error.
        connector: `"cmm"` (the Cross-Modal Modulator), or, to compare with, `"prepend"`, `"cross_attend"` or `"routed"`
            (Firebolt-VL V2: the patches that matter most as tokens).
        fusion: what the decoder gets from the CMM: `"replace"` (its output in the place of the text embeddings),
            `"concat"` (prompt, modulated prompt, answer) or `"pool"` (one pooled vector before the text).
        grids: what the connector sees of an image: `"views"` (one pooled vector of the whole image and of each tile),
            `"patches"` (the encoder's last hidden state over the whole image) or `"both"`.
        image_token_id: id of the token that stands for an image in a text, as trainers and engines ask for it (trl
            suppresses it while it samples): -1, an id that no token has, since Firebolt-VL has none but the one that
            `cmm_config` may name.
        quantized: `"int8"` or `"int4"` where the checkpoint's weights are in 8 or 4 bits (`quantize_int8`,
            `quantize_int4`), as `save_pretrained` notes it.

    Raises:
        ValueError: a size that cannot be, an unknown connector, fusion or kind of grids, a fusion with a connector
            other than `"cmm"`, an unknown field, a conflicting width or a token beyond the vocabulary in `cmm_config`,
            a query, layers or start in it with a connector other than `"cmm"`, views of a vision tower without a
            pooling head.
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
    grids: str = "views"
    image_token_id: int = NO_TOKEN
    tie_word_embeddings: bool = True
    quantized: str | None = None

    def __post_init__(self, **kwargs):
        check_keys(kwargs, FireboltConfig)
        check_quantized_kind("FireboltConfig", self.quantized)
        with named_part(self):
            super().__post_init__(**kwargs)
        if self.connector not in CONNECTORS:
            choices = ", ".join(CONNECTORS)
            raise ValueError(f"FireboltConfig: connector is {self.connector!r}; expected one of {choices}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"FireboltConfig: fusion is {self.fusion!r}; expected one of {', '.join(FUSIONS)}")
        if self.grids not in GRIDS:
            raise ValueError(f"FireboltConfig: grids is {self.grids!r}; expected one of {', '.join(GRIDS)}")
        if self.fusion != "replace" and self.connector != "cmm":
            raise ValueError(
                f"FireboltConfig: fusion is {self.fusion!r} with connector {self.connector!r}; expected fusion "
                "'replace', or connector 'cmm'"
            )
        text, vision = backbone(self.text_config), backbone(self.vision_config)
        check_sizes("FireboltConfig: text_config", text)
        check_sizes("FireboltConfig: vision_config", vision)
        if self.grids != "patches" and not getattr(vision, "vision_use_head", True):
            raise ValueError(
                "FireboltConfig: vision_config.vision_use_head is False; expected True, since a view's grid is the "
                "output of the pooling head, or grids 'patches'"
            )
        if self.grids == "patches" and getattr(vision, "vision_use_head", False):
            vision = self.vision_config = copy.copy(vision)
            vision.vision_use_head = False  # nothing would read its output, or learn from it
        self.tie_word_embeddings = text.tie_word_embeddings
        widths = {"text_width": text.hidden_size, "grid_width": vision.hidden_size}
        self.cmm_config = self._resolved_cmm_config(self.cmm_config, widths)
        token = self.cmm_config.get("image_token_id")
        if token is not None and token >= text.vocab_size:
            raise ValueError(
                f"FireboltConfig: cmm_config.image_token_id is {token}; expected less than {text.vocab_size}, the "
                "vocabulary of the decoder"
            )
        if token is not None and self.image_token_id == NO_TOKEN:
            self.image_token_id = token

    def _resolved_cmm_config(self, given: dict | CMMConfig | None, widths: dict[str, int]) -> dict:
        config_class = connector_config_class(self.connector)
        given = given.to_dict() if isinstance(given, CMMConfig) else dict(given or {})
        known = {field.name for field in fields(config_class)}
        if unknown := sorted(set(given) - known):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"FireboltConfig: cmm_config has the unknown keys {', '.join(unknown)}; expected some of "
                f"{', '.join(sorted(known))}{meant}"
            )
        for name, width in widths.items():
            if given.get(name, width) != width:
                raise ValueError(
                    f"FireboltConfig: cmm_config.{name} is {given[name]}; expected {width}, the backbone's hidden size"
                )
        resolved = config_class(**{**given, **widths})
        if self.connector != "cmm":
            where = f"where connector is {self.connector!r}"
            check_defaults("FireboltConfig: cmm_config", resolved, MODULATOR_FIELDS, where)
        return resolved.to_dict()

    def connector_config(self) -> CMMConfig:
        """Return the connector's own configuration, as an object."""
        assert isinstance(self.cmm_config, dict)  # since `__post_init__`
        return connector_config_class(self.connector).from_dict(self.cmm_config)


__all__ = ["FireboltConfig"]
