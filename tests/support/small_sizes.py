"""Small sizes of the backbones that whole answers are measured with."""

from firebolt_vl.bench import answer as measuring

TEXT = {
    **measuring.LFM2_350M,
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv"],
    "block_multiple_of": 8,
}
VISION = {**measuring.SIGLIP2_BASE, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1}
VISION["num_attention_heads"] = 2
SMALL = measuring.Sizes(
    text=TEXT,
    vision={**VISION, "image_size": 32},
    image_size=32,
    tile_size=16,
    lfm2_vl={
        "text_config": TEXT,
        "vision_config": {"model_type": "siglip2_vision_model", **VISION},
        "projector_hidden_size": 32,
        "image_token_id": 299,
    },
    smolvlm={name: measuring._llama(24, 1, 3, 32) for name in measuring.PEERS[1:]},
    smolvlm_vision={**VISION, "image_size": 64},
    smolvlm_vocabulary=300,
)
