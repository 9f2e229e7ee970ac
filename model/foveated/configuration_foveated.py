"""FoveatedVLMConfig: the vision tower that is looked through, the decoder that reads and steers it, and the bridges."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ..configuration_checks import backbone, check_keys, check_quantized_kind, check_sizes, named_part

MODES = ("coarse_only", "coarse_fine", "autoregressive")
# Its position table is that of 518 x 518, resized for the frames' 224 x 224 at run time.
DINOV2_SMALL = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "image_size": 518,
    "patch_size": 14,
}
SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


@strict
class FoveatedVLMConfig(PreTrainedConfig):
    r"""Configuration of a foveated vision-language model: one visual token for each frame.

    Args:
        vision_config: a `Dinov2Config`, or its fields as a dict; DINOv2-small by default.
        text_config: a `LlamaConfig`, or its fields as a dict: the decoder; SmolLM2-135M by default.
        query_dim: width of the query that looks at a frame.
        visual_scale: factor on the visual tokens, so that they are as large as the decoder's embeddings.
        deep_query: the query goes through every layer of the vision tower; False: it attends once, to the last layer.
        mode: `"coarse_fine"`, `"coarse_only"` or `"autoregressive"`, where a call names none.
        lambda_coarse: weight of the loss on the coarse visual tokens that mode `coarse_fine` adds.
        original_behaviour: repeat what the original does with frames outside the frame mask: the decoder attends to
            them and they take up positions; and with a shallow query in mode `autoregressive`, which it takes for a
            deep one. For comparison with the original only.
        frame_block: how many frames go through the vision tower at a time, which bounds its memory.
        image_token_id: as in FireboltConfig: no token stands for an image, -1.
        quantized: as in FireboltConfig: `"int8"` or `"int4"` where the checkpoint's weights are so.

    Raises:
        ValueError: an unknown mode, a backbone of another kind, a size below 1.
    """

    model_type = "foveated_vlm"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="dinov2"),
    }
    keys_to_ignore_at_inference = ["past_key_values", "cache", "visual"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    query_dim: int = 384
    visual_scale: float = 0.14
    deep_query: bool = True
    mode: str = "coarse_fine"
    lambda_coarse: float | int = 0.0
    original_behaviour: bool = False
    frame_block: int = 16
    image_token_id: int = -1
    tie_word_embeddings: bool = True
    quantized: str | None = None

    def __post_init__(self, **kwargs):
        check_keys(kwargs, FoveatedVLMConfig)
        check_quantized_kind("FoveatedVLMConfig", self.quantized)
        self.vision_config = DINOV2_SMALL if self.vision_config is None else self.vision_config
        self.text_config = SMOLLM2_135M if self.text_config is None else self.text_config
        with named_part(self):
            super().__post_init__(**kwargs)
        check_mode("FoveatedVLMConfig", self.mode)
        vision, text = backbone(self.vision_config), backbone(self.text_config)
        for name, config, wanted in (("vision_config", vision, "dinov2"), ("text_config", text, "llama")):
            if (kind := config.model_type) != wanted:
                raise ValueError(f"FoveatedVLMConfig: {name} is of a {kind!r} model; expected a {wanted!r} model")
            check_sizes(f"FoveatedVLMConfig: {name}", config)
        for name in ("query_dim", "frame_block"):
            if getattr(self, name) < 1:
                raise ValueError(f"FoveatedVLMConfig: {name} is {getattr(self, name)}; expected at least 1")
        self.tie_word_embeddings = text.tie_word_embeddings


def check_mode(owner: str, mode: str) -> None:
    """Raise ValueError for an unknown mode, in the name of `owner`."""
    if mode not in MODES:
        raise ValueError(f"{owner}: mode is {mode!r}; expected one of {', '.join(MODES)}")


__all__ = ["FoveatedVLMConfig"]
