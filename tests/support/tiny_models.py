"""Small models and tokenizers with random weights, made where they are needed."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from firebolt_vl.model import (
    CHAT_TEMPLATE,
    FireboltConfig,
    FireboltForConditionalGeneration,
    FireboltImageProcessor,
    FireboltProcessor,
)

SPECIAL_TOKENS = ("<|pad|>", "<|startoftext|>", "<|im_end|>", "<|im_start|>")


def make_tokenizer(**kwargs) -> PreTrainedTokenizerFast:
    """Complete on bytes, one token each: pad 0, bos 1, eos 2, `<|im_start|>` 3, then the 256 bytes. No bos is added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pad, bos, eos, start = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=[start],
        **kwargs,
    )


def make_processor(tokenizer: dict | None = None, chat_template: str | None = CHAT_TEMPLATE, **images):
    """Views of `make_config`'s sizes: 32 pixels the global one, 16 a tile; `images` go to the image processor."""
    images = {"size": {"height": 32, "width": 32}, "tile_size": 16, **images}
    return FireboltProcessor(FireboltImageProcessor(**images), make_tokenizer(**(tokenizer or {})), chat_template)


def write_checkpoint(folder, connector: str = "cmm", text: dict | None = None, **processor) -> None:
    """A whole checkpoint with random weights, as `save_pretrained` leaves it."""
    make_model(connector, text=text).save_pretrained(folder)
    make_processor(**processor).save_pretrained(folder)


# Connector "routed" in several kinds, as tests name them.
ROUTED = {
    "routed": {},
    "routed_text": {"route_by": "text"},
    "routed_mean": {"insert": "mean_at_token", "image_token_id": 258},
    "routed_original": {"original_behaviour": True, "ssm": "self_attn", "state_size": None},
}
IMAGE_TOKEN = 258


def make_config(
    connector: str = "cmm", fusion: str = "replace", text: dict | None = None, grids: str = "views", **cmm
) -> FireboltConfig:
    """32 wide, four LFM2 layers (convolution and attention in turn), a two-layer SigLIP that sees 32-pixel views."""
    return FireboltConfig(
        text_config={
            "vocab_size": 260,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_multiple_of": 8,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **(text or {}),
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        cmm_config={
            **{"heads": 2, "head_dim": 8, "top_k": 3, "dropout": 0.0, "state_size": 8},
            **({"expert_width": 12, **ROUTED[connector]} if connector in ROUTED else {}),
            **cmm,
        },
        connector="routed" if connector in ROUTED else connector,
        fusion=fusion,
        grids=grids,
    )


def make_model(
    connector: str = "cmm", fusion: str = "replace", seed: int = 0, **cmm
) -> FireboltForConditionalGeneration:
    """Random weights, large enough that every part of the model shows in the logits; eval mode."""
    torch.manual_seed(seed)
    model = FireboltForConditionalGeneration(make_config(connector, fusion, **cmm)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "connector.ssm" not in name:
                parameter.normal_(std=0.7 / parameter.shape[-1] ** 0.5)
        model.get_input_embeddings().weight.normal_(std=0.5)
    return model


def make_pixels(rows: int, images: int | None = None, tiles: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """What the processor gives for `rows` images of 32 pixels in `tiles` tiles of 16 (with `images`, so many a row)."""
    generator = torch.Generator().manual_seed(seed)
    lead = (rows,) if images is None else (rows, images)
    side = round(tiles**0.5)
    corners = [(y / side, x / side, (y + 1) / side, (x + 1) / side) for y in range(side) for x in range(side)]
    boxes = torch.tensor([(0.0, 0.0, 1.0, 1.0), *corners])
    return {
        "pixel_values": torch.randn(*lead, 3, 32, 32, generator=generator),
        "pixel_tiles": torch.randn(*lead, tiles, 3, 16, 16, generator=generator),
        "tile_mask": torch.ones(*lead, tiles, dtype=torch.bool),
        "image_mask": torch.ones(*lead, dtype=torch.bool),
        "grid_boxes": boxes.expand(*lead, 1 + tiles, 4).clone(),
    }


def make_text(lengths: list[int], seed: int = 0, side: str = "left") -> dict[str, torch.Tensor]:
    """Random tokens, one row of each length, padded on `side`."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        columns = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, columns] = torch.randint(4, 260, (length,), generator=generator)
        mask[row, columns] = 1
    return {"input_ids": ids, "attention_mask": mask}
