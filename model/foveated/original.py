"""Checkpoints of the original fVLM: a state dict, or a training checkpoint with one in it, and no configuration."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from .configuration_foveated import FoveatedVLMConfig

# What from_original and from_pretrained take for a checkpoint that says nothing of them.
CONFIG_FIELDS = (
    "vision_config",
    "text_config",
    "query_dim",
    "visual_scale",
    "deep_query",
    "mode",
    "lambda_coarse",
    "original_behaviour",
    "frame_block",
)
WEIGHTS = ("model.safetensors", "model.pt", "best.pt", "latest.pt")
INNER = ("model_state_dict", "state_dict", "model")
# transformers gave DINOv2's attention these names.
RENAMED = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}
MASK_TOKEN = "encoder.dino.embeddings.mask_token"


def convert_key(key: str) -> str:
    """Our name of a parameter of the original."""
    key = key.replace("._orig_mod", "")  # saved from a compiled model
    if key.startswith("encoder.dino."):
        for old, new in RENAMED.items():
            key = key.replace(old, new)
    return key


def convert_state_dict(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from the original's, in float32; `wanted` is a model's, for names and shapes.

    The original's decoder is in bfloat16. A mask token, which nothing uses, may be missing or left over, and so may the
    decoder's head, which is its embeddings. Raises ValueError for anything else that does not fit.
    """
    converted = {convert_key(key): tensor.float() for key, tensor in state.items()}
    if MASK_TOKEN in wanted and MASK_TOKEN not in converted:
        converted[MASK_TOKEN] = torch.zeros(wanted[MASK_TOKEN].shape)
    elif MASK_TOKEN not in wanted:
        converted.pop(MASK_TOKEN, None)
    if "llm.model.embed_tokens.weight" in converted:
        converted.setdefault("llm.lm_head.weight", converted["llm.model.embed_tokens.weight"])
    for what, names in (("unknown", converted.keys() - wanted.keys()), ("missing", wanted.keys() - converted.keys())):
        if names:
            raise ValueError(f"state_dict: {what} keys {', '.join(sorted(names)[:5])} ({len(names)} in all)")
    for name, tensor in converted.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"state_dict: {name} is {list(tensor.shape)}, the configurations make it {list(wanted[name].shape)}; "
                "pass those of the backbones it was trained with (vision_config=, text_config=)"
            )
    return converted


def original_config(state: dict[str, Tensor], **given) -> FoveatedVLMConfig:
    """The configuration of an original checkpoint: what is given, the width of its query, defaults for the rest."""
    if given.get("query_dim") is None:
        if "q_static" not in state:
            raise ValueError("state_dict: there is no q_static in it; a state dict of the original is wanted")
        given["query_dim"] = state["q_static"].shape[-1]
    return FoveatedVLMConfig(**given)


def load_original(name: str | os.PathLike, **hub) -> tuple[dict[str, Tensor], dict] | None:
    """State dict of a checkpoint with the original's weights, and what a configuration beside it says of CONFIG_FIELDS.

    `name` is a folder or hub id. None where the weights are not the original's: a configuration is of another model, or
    the parameters have our names. Weights in .pt files are read by PyTorch's weights-only loader, which runs no code of
    theirs. Raises OSError where a configuration has no weights beside it.
    """
    described = _described(name, hub)
    kind = (described or {}).get("model_type")
    if kind not in (None, FoveatedVLMConfig.model_type):
        return None
    found = (_cached(name, file, hub) for file in WEIGHTS)
    path = next((path for path in found if path is not None), None)
    if path is None and Path(name).is_dir():
        path = next((str(path) for path in sorted(Path(name).glob("*.pt"), reverse=True)), None)
    if path is None:
        if described is None or kind is not None:
            return None  # no checkpoint, or one of ours in shards: transformers sees to it
        raise OSError(f"{name}: neither {', '.join(WEIGHTS)} nor any other .pt file is there")
    if kind is not None and path.endswith(".safetensors"):
        with safe_open(path, "pt") as file:
            if is_ours(described, file.keys()):
                return None
    state = (
        load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    )
    inner = next((state[key] for key in INNER if isinstance(state.get(key), dict)), state)
    state = {key: tensor for key, tensor in inner.items() if isinstance(tensor, Tensor)}
    return state, {field: described[field] for field in CONFIG_FIELDS if field in (described or {})}


def is_ours(described: dict, names: Iterable[str]) -> bool:
    """Whether a configuration of ours and the names of tensors beside it are what `save_pretrained` writes.

    The names alone do not tell: transformers writes DINOv2's attention under the old ones, and reads them back. Only a
    saved model says its class, and none has the original's names of a compiled module.
    """
    names = list(names)
    if any("._orig_mod" in name for name in names):
        return False
    return bool(described.get("architectures")) or not any(old in name for name in names for old in RENAMED)


def _described(name: str | os.PathLike, hub: dict) -> dict | None:
    path = _cached(name, "config.json", hub)
    if path is None:
        return None
    described = json.loads(Path(path).read_text(encoding="utf-8"))
    return described if isinstance(described, dict) else {}


def _cached(name: str | os.PathLike, file: str, hub: dict) -> str | None:
    return cached_file(
        name,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
