"""The original's tiny checkpoint, written as the original saves one."""

import json
import string

import golden
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from firebolt_vl.views.tiling import compatible_boxes, cut, relative_boxes

VECTORS = golden.load("firebolt_tiny_upstream")
DESCRIBED = json.loads(golden.path("firebolt_tiny_upstream.json").read_text())


def pixels() -> dict[str, torch.Tensor]:
    """The fixture's images as the model takes them, by the fixture's pixel rule."""
    images = VECTORS["in.pixel_values_u8"]
    boxes = compatible_boxes(256, 256, 128, 2)
    tiles = np.stack([cut(image.numpy(), boxes, 128) for image in images])
    normal = lambda levels: (levels.float() - 128) / 128  # noqa: E731
    return {
        "pixel_values": normal(images),
        "pixel_tiles": normal(torch.from_numpy(tiles)),
        "grid_boxes": torch.from_numpy(relative_boxes(boxes, 256, 256)).expand(len(images), -1, -1),
    }


# A small V2: 32-pixel images in 4 x 4 patches of width 24, five of which are kept.
ROUTED_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
ROUTED_TOKEN = 44
ROUTED_KEPT, ROUTED_EXPERTS, ROUTED_HIDDEN = 5, 4, 12


def routed_state(layers: int = 1, tower: str = "model.vision_encoder.encoder.", seed: int = 0) -> dict:
    """A state dict of V2 with random weights, under its names, with self-attention and the heads of its losses."""
    torch.manual_seed(seed)
    lm = Lfm2ForCausalLM(Lfm2Config(**DESCRIBED["lm_config"]))
    vision = SiglipVisionModel(SiglipVisionConfig(**ROUTED_VISION))
    wide, text = ROUTED_VISION["hidden_size"], DESCRIBED["lm_config"]["hidden_size"]
    linears = {
        "model.router.importance": (1, wide),
        "model.expert_connector.router": (ROUTED_EXPERTS, wide),
        "model.ssm.attn.out_proj": (wide, wide),
        "model.ssm.ff.0": (4 * wide, wide),
        "model.ssm.ff.3": (wide, 4 * wide),
        "model.dino_head.0": (7, text),
        "model.recon_head.0": (7, text),
        "model.image_proj": (7, text),
        "model.text_proj": (7, text),
    }
    for expert in range(ROUTED_EXPERTS):
        linears[f"model.expert_connector.experts.{expert}.ff.0"] = (ROUTED_HIDDEN, wide)
        linears[f"model.expert_connector.experts.{expert}.ff.3"] = (wide, ROUTED_HIDDEN)
    for layer in range(layers):
        linears[f"model.visual_proj.proj.{4 * layer}"] = (text, text if layer else wide)
    state = {f"{name}.weight": torch.randn(shape) / shape[1] ** 0.5 for name, shape in linears.items()}
    state |= {f"{name}.bias": 0.3 * torch.randn(shape[0]) for name, shape in linears.items()}
    state |= {
        "model.ssm.attn.in_proj_weight": torch.randn(3 * wide, wide) / wide**0.5,
        "model.ssm.attn.in_proj_bias": 0.3 * torch.randn(3 * wide),
        "model.contrastive_log_temp": torch.tensor(0.5),
    }
    norms = {"model.ssm.norm": wide} | {f"model.visual_proj.proj.{4 * layer + 1}": text for layer in range(layers)}
    for name, width in norms.items():
        state |= {f"{name}.weight": 1 + 0.3 * torch.randn(width), f"{name}.bias": 0.3 * torch.randn(width)}
    state |= {tower + name: tensor for name, tensor in vision.state_dict().items()}
    state |= {f"base_lm.{name}": tensor for name, tensor in lm.state_dict().items()}
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.dim() == 2 and name.startswith(("base_lm.model.layers", tower + "encoder")):
                tensor.normal_(std=0.7 / tensor.shape[1] ** 0.5)
    return state


def write_routed_original(folder, state: dict | None = None, **config) -> dict:
    """The layout that V2 saves; returns its state dict."""
    state = routed_state() if state is None else state
    described = {
        "model_type": "fireboltvl",
        "lm_name_or_path": "lm",
        "vision_ckpt_path": "siglip",
        "routing_top_k": ROUTED_KEPT,
        "ssm_type": "s4d",
        "image_token_id": ROUTED_TOKEN,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **config,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    backbones = {"lm": DESCRIBED["lm_config"], "siglip": {"model_type": "siglip_vision_model", **ROUTED_VISION}}
    for name, inner in backbones.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(inner))
    save_file(
        {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}, folder / "model.safetensors"
    )
    return state


def letter_tokenizer(**kwargs) -> PreTrainedTokenizerFast:
    """A tokenizer for its vocabulary of 64: small letters and a few signs, one token each."""
    letters = ["<pad>", "<s>", "</s>", "<unk>", *string.ascii_lowercase, *" ?.<>\n:"]
    backend = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", **kwargs)


def write_original(folder, state: dict | None = None, shards: int = 1) -> None:
    """The layout that the original saves: its own keys, and backbones that the configuration only names."""
    config = {**DESCRIBED["firebolt_config"], "lm_name_or_path": "lm", "vision_ckpt_path": "siglip"}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, key in (("lm", "lm_config"), ("siglip", "siglip_config")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(DESCRIBED[key]))
    state = VECTORS.under("param") if state is None else state
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return
    weight_map = {key: f"model-{i % shards:05d}.safetensors" for i, key in enumerate(sorted(state))}
    for file in sorted(set(weight_map.values())):
        save_file({key: state[key] for key in state if weight_map[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
