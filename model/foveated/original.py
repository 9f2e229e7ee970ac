"""Checkpoints of the original fVLM: a state dict, and no configuration."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint_files import CONFIG, TOKENIZERS, Shapes, check_folder, read_json, read_shapes
from ..checkpoint_sizes import check_config
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
# transformers gave DINOv2's attention these names.
RENAMED = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
}
QUERY = "q_static"
MASK_TOKEN = "encoder.dino.embeddings.mask_token"


def convert_key(key: str) -> str:
    """Return our name of a parameter of the original."""
    key = key.replace("._orig_mod", "")  # saved from a compiled model
    if key.startswith("encoder.dino."):
        for old, new in RENAMED.items():
            key = key.replace(old, new)
    return key


def convert_state_dict(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the original's state dict to ours, in float32; `wanted` is a model's, for names and shapes.

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
            raise ValueError(f"state_dict has the {what} keys {', '.join(sorted(names)[:5])} ({len(names)} in all)")
    for name, tensor in converted.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"state_dict: {name} has shape {list(tensor.shape)}; expected {list(wanted[name].shape)}; pass the "
                "configurations of the backbones it was trained with (vision_config=, text_config=)"
            )
    return converted


def original_config(state: Mapping[str, Tensor | tuple[int, ...]], **given) -> FoveatedVLMConfig:
    """Make the configuration of an original checkpoint: what is given, the width of its query, defaults for the rest.

    `state`: its tensors, or their shapes.
    """
    if given.get("query_dim") is None:
        if QUERY not in state:
            raise ValueError(f"state_dict has no {QUERY}; expected a state dict of the original")
        query = state[QUERY]
        given["query_dim"] = tuple(getattr(query, "shape", query))[-1]
    return FoveatedVLMConfig(**given)


def is_foveated(folder: Path) -> bool:
    """Tell whether a checkpoint's folder is of a foveated model: it says so, or says nothing and has the original's
    query among weights beside a tokenizer.

    Raises CheckpointError.
    """
    check_folder(folder)
    described = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    if "model_type" in described:
        return described["model_type"] == FoveatedVLMConfig.model_type
    return any((folder / name).is_file() for name in TOKENIZERS) and QUERY in read_shapes(folder)


def open_original(folder: Path) -> tuple[dict, Shapes] | None:
    """Read what a configuration beside the original's weights says of CONFIG_FIELDS, and the weights' shapes.

    None where the weights are not the original's: the configuration is of another model, or the parameters have our
    names. Raises CheckpointError, where the weights are in a pickle too: the original is distributed in one.
    """
    described = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    kind = described.get("model_type")
    if kind not in (None, FoveatedVLMConfig.model_type):
        return None
    shapes = read_shapes(folder)
    if kind is not None and is_ours(described, shapes):
        return None
    check_config(described, shapes, folder / CONFIG)
    return {field: described[field] for field in CONFIG_FIELDS if field in described}, shapes


def is_ours(described: dict, names: Iterable[str]) -> bool:
    """Return whether a configuration of ours and the names of tensors beside it are what `save_pretrained` writes.

    The names alone do not tell: transformers writes DINOv2's attention under the old ones, and reads them back. Only a
    saved model says its class, and none has the original's names of a compiled module.
    """
    names = list(names)
    if any("._orig_mod" in name for name in names):
        return False
    return bool(described.get("architectures")) or not any(old in name for name in names for old in RENAMED)
