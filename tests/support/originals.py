"""The original's tiny checkpoint, written as the original saves one."""

import json
import string

import golden
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from firebolt_vl.model.firebolt.tiling import compatible_boxes, cut, relative_boxes

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
