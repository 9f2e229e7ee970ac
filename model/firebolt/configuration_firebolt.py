"""FireboltConfig: the decoder, the vision tower and the layer between them."""

import difflib
from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...cmm import CMMConfig
from ..configuration_checks import backbone, check_keys, check_sizes

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
        text, vision = backbone(self.text_config), backbone(self.vision_config)
        check_sizes("text_config", text)
        check_sizes("vision_config", vision)
        if not getattr(vision, "vision_use_head", True):
            raise ValueError("vision_config: vision_use_head=False came; a grid is the output of the pooling head")
        self.tie_word_embeddings = text.tie_word_embeddings
        widths = {"text_width": text.hidden_size, "grid_width": vision.hidden_size}
        self.cmm_config = self._resolved_cmm_config(self.cmm_config, widths)

    @staticmethod
    def _resolved_cmm_config(given: dict | CMMConfig | None, widths: dict[str, int]) -> dict:
        given = given.to_dict() if isinstance(given, CMMConfig) else dict(given or {})
        known = {field.name for field in fields(CMMConfig)}
        if unknown := sorted(set(given) - known):
            near = difflib.get_close_matches(unknown[0], known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"cmm_config: unknown {', '.join(unknown)}; {meant}known are {', '.join(sorted(known))}")
        for name, width in widths.items():
            if given.get(name, width) != width:
                raise ValueError(f"cmm_config: {name} {given[name]} came, the backbone's hidden size is {width}")
        return CMMConfig(**{**given, **widths}).to_dict()

    def connector_config(self) -> CMMConfig:
        """The connector's own configuration, as an object."""
        assert isinstance(self.cmm_config, dict)  # since `__post_init__`
        return CMMConfig.from_dict(self.cmm_config)


__all__ = ["FireboltConfig"]
