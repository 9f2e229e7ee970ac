"""Checkpoints of Firebolt-VL V2 (model_type "fireboltvl"): its configuration and state dict, made ours."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...cmm import Routed
from ...cmm.routed_original import sizes_of
from .configuration_firebolt import FireboltConfig

ROUTED_MODEL_TYPE = "fireboltvl"
CONNECTOR = ("model.router.", "model.expert_connector.", "model.ssm.", "model.visual_proj.")
VISION = "model.vision_encoder."
# The tower may stand in a module or two of its own; this is the first of its parameters.
TOWER = re.compile(r"(model\.vision_encoder\.(?:\w+\.)*?)embeddings\.patch_embedding\.weight")
# Heads of losses of its training, without influence on its output, as the pooling head and the text tower.
AUXILIARY = re.compile(r"(model\.)?((dino_head|recon_head|image_proj|text_proj)\..+|contrastive_log_temp)")
# What its configuration says where a key is missing.
TOP_K, EXPERTS_USED, DROPOUT = 32, 2, 0.1


def routed_fields(
    original: dict, shapes: Mapping[str, tuple[int, ...]], insert: str | None, kernel_taps: int | None
) -> dict[str, Any]:
    """Our keys of a V2 configuration, beside its backbones and token ids.

    Its SSM is that of the weights, whatever the configuration says: where a library was missing it had another one.
    `insert` None: "mean_at_token" where it has an image token, as in the code that was published last.
    """
    found = sizes_of({name.removeprefix("model."): shape for name, shape in shapes.items() if _of_connector(name)})
    token = original.get("image_token_id")
    if insert is None:
        insert = "prepend" if token is None else "mean_at_token"
    connector = {
        **found,
        "top_k": original.get("routing_top_k", TOP_K),
        "experts_used": original.get("expert_top_k", EXPERTS_USED),
        "dropout": original.get("expert_dropout", DROPOUT),
        "kernel_taps": kernel_taps if found["ssm"] == "s4" else None,
        "insert": insert,
        "image_token_id": token,
        "original_behaviour": True,
    }
    return {"connector": "routed", "grids": "patches", "cmm_config": connector}


def convert_routed(
    state: Mapping[str, Tensor], config: FireboltConfig
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Our names of V2's vision tower and connector, the keys without influence, and those that are something else."""
    converted: dict[str, Tensor] = {}
    connector: dict[str, Tensor] = {}
    dead, rest = [], []
    tower = next((found[1] for name in state if (found := TOWER.fullmatch(name)) and "text_model" not in name), None)
    for name, tensor in state.items():
        if _of_connector(name):
            connector[name.removeprefix("model.")] = tensor
        elif tower is not None and name.startswith(tower):
            inner = name.removeprefix(tower)
            if inner.startswith("head."):
                dead.append(name)
            else:
                converted[f"model.vision_tower.{inner}"] = tensor
        elif AUXILIARY.fullmatch(name) or (name.startswith(VISION) and re.search(r"text_model\.|\.logit_", name)):
            dead.append(name)
        else:
            rest.append(name)
    fields = config.connector_config().to_dict()
    own = ("top_k", "experts_used", "dropout", "kernel_taps", "insert", "image_token_id")
    made = Routed.from_original(connector, **{name: fields[name] for name in own})
    converted |= {f"model.connector.{name}": tensor for name, tensor in made.state_dict().items()}
    return converted, dead, rest


def _of_connector(name: str) -> bool:
    return name.startswith(CONNECTOR)
