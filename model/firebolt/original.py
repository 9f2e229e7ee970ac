"""Checkpoints of the original Firebolt-VL ("fireboltlm"; V2, "fireboltvl"): configuration and weights, made ours."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from ...cmm import CrossModalModulator
from ..checkpoint_files import CONFIG, Shapes, read_json
from ..checkpoint_sizes import check_config
from ..loading import Opened, read_weights
from ..places import HUB, PlaceError, could_be_hub_id, find
from .configuration_firebolt import FireboltConfig
from .original_routed import ROUTED_MODEL_TYPE, convert_routed, routed_fields

ORIGINAL_MODEL_TYPES = ("fireboltlm", ROUTED_MODEL_TYPE)
# Fixed in the original's fuser, whatever its configuration says.
HEADS, HEAD_DIM, TOP_K, DROPOUT = 4, 32, 4, 0.1

FUSER = "model.fuser.fuser.model."
DECODER = "base_lm.model."
HEAD = "base_lm.lm_head."
VISION = "model.vision_encoder.encoder.model.vision_model."
# In the original's state dict, without influence on its output.
DEAD = (
    "model.projector.",
    "model.fuser.fuser.importance.",
    "model.vision_encoder.encoder.model.text_model.",
    "model.vision_encoder.encoder.model.logit_bias",
    "model.vision_encoder.encoder.model.logit_scale",
)
# The original was trained with a word for the image, ordinary text, on a line of its own in front of the question.
FLAT_MESSAGES = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- set text = namespace(content='') -%}
    {%- if message['content'] is string -%}
        {%- set text.content = message['content'] -%}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {%- set text.content = text.content + '<image>\\n' -%}
            {%- elif item['type'] == 'text' -%}
                {%- set text.content = text.content + item['text'] -%}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set flat.messages = flat.messages + [{'role': message['role'], 'content': text.content}] -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""
PLAIN_TEMPLATE = "{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"


class Original(NamedTuple):
    """A checkpoint of the original, read: our configuration and state dict, and its keys without influence."""

    config: FireboltConfig
    state: dict[str, Tensor]
    dead: list[str]
    keys: int
    """How many keys it had."""


def is_original(config: dict) -> bool:
    return config.get("model_type") in ORIGINAL_MODEL_TYPES


def convert_state_dict(state: dict[str, Tensor], config: FireboltConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Convert the original's state dict to ours, and list the keys that have no influence there and are left out.

    Raises ValueError where a key is unknown: nothing of a checkpoint is dropped in silence.
    """
    converted: dict[str, Tensor] = {}
    other: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(DECODER):
            converted["model.language_model." + key.removeprefix(DECODER)] = tensor
        elif key.startswith(HEAD):
            converted["lm_head." + key.removeprefix(HEAD)] = tensor
        else:
            other[key] = tensor
    ours, dead, unknown = (convert_routed if config.connector == "routed" else _convert_modulated)(other, config)
    if unknown:
        raise ValueError(f"state_dict has the unknown keys {', '.join(sorted(unknown)[:5])} ({len(unknown)} in all)")
    return converted | ours, sorted(dead)


def _convert_modulated(
    state: dict[str, Tensor], config: FireboltConfig
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Our names of the first version's vision tower and modulator, the keys without influence, and the unknown ones."""
    converted: dict[str, Tensor] = {}
    fuser: dict[str, Tensor] = {}
    dead, unknown = [], []
    for key, tensor in state.items():
        if key.startswith(FUSER):
            fuser[key.removeprefix(FUSER)] = tensor
        elif key.startswith(VISION):
            converted["model.vision_tower." + key.removeprefix(VISION)] = tensor
        elif key.startswith(DEAD):
            dead.append(key)
        else:
            unknown.append(key)
    if unknown:
        return converted, dead, unknown
    cmm = config.connector_config()
    connector = CrossModalModulator.from_original(
        fuser,
        heads=cmm.heads,
        head_dim=cmm.head_dim,
        top_k=cmm.top_k,
        ssm=cmm.ssm,
        kernel_taps=cmm.kernel_taps,
    )
    converted.update({f"model.connector.{key}": tensor for key, tensor in connector.state_dict().items()})
    return converted, dead, []


def convert_config(
    original: dict,
    state: Mapping[str, Tensor | tuple[int, ...]],
    folder: str | os.PathLike | None = None,
    text_config: PreTrainedConfig | dict | None = None,
    vision_config: PreTrainedConfig | dict | None = None,
    kernel_taps: int | None = None,
    insert: str | None = None,
) -> FireboltConfig:
    """Make our configuration of an original checkpoint.

    `state` has its tensors or their shapes, whose names tell the fuser's SSM. The backbones' configurations are
    resolved as a local folder (below the checkpoint's `folder`, or as named), then as a model that the hub gave before,
    then as `text_config` / `vision_config`: a file that names a model of the hub gets nothing fetched from there.

    `insert` is for V2 alone, where None means what its configuration says.

    Raises ValueError where none of them is there, for a fusion strategy other than the modulator, or for an `insert`
    of the first version; CheckpointError where a configuration does not fit the weights.
    """
    version_2 = original.get("model_type") == ROUTED_MODEL_TYPE
    if insert is not None and not version_2:
        raise ValueError(f"insert is {insert!r}; expected None, as only a checkpoint of Firebolt-VL V2 inserts tokens")
    if original.get("fuse_strategy", "cossm") != "cossm":
        raise ValueError(f"fuse_strategy is {original['fuse_strategy']!r}; expected 'cossm'")
    shapes = {name: tuple(found.shape if isinstance(found, Tensor) else found) for name, found in state.items()}
    text = _backbone("lm_name_or_path", "text_config", original, shapes, folder, text_config)
    vision = _backbone("vision_ckpt_path", "vision_config", original, shapes, folder, vision_config)
    tokens: dict[str, Any] = {name: original.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    own = routed_fields(original, shapes, insert, kernel_taps) if version_2 else _modulated_fields(shapes, kernel_taps)
    return FireboltConfig(
        text_config=text,
        vision_config=getattr(vision, "vision_config", vision),  # the vision tower's part of a SigLIP
        **own,
        **tokens,
    )


def _modulated_fields(shapes: Shapes, kernel_taps: int | None) -> dict[str, Any]:
    ssm = "s4" if any(key.startswith(FUSER + "s4.layer.") for key in shapes) else "s4d"
    connector = {
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "top_k": TOP_K,
        "top_k_mode": "renormalize",
        "ssm": ssm,
        "kernel_taps": kernel_taps if ssm == "s4" else None,
        "dropout": DROPOUT,
        "grid_positions": False,
    }
    return {"cmm_config": connector}


def _backbone(key: str, argument: str, original: dict, shapes: Shapes, folder, given) -> PreTrainedConfig | dict:
    """The configuration of a backbone that the original only names."""
    named = original.get(key)
    found = _backbone_folder(named, folder) if isinstance(named, str) and named else None
    if found is not None:
        return read_backbone(found, shapes)
    if given is not None:
        return given
    if not named:
        raise ValueError(f"{key} is not given; expected the name of a backbone; pass {argument}=")
    option = "--decoder" if argument == "text_config" else "--vision"
    raise ValueError(
        f"{key} is {named!r}; expected a local folder or a model that the hub gave before; pass {argument}= (in "
        f"firebolt convert {option}, which may name {HUB}ORG/NAME)"
    )


def _backbone_folder(named: str, folder: str | os.PathLike | None) -> Path | None:
    places = [Path(named)] if folder is None else [Path(folder) / named, Path(named)]
    for place in places:
        if (place / CONFIG).exists():
            return place
    if could_be_hub_id(named):
        try:
            return find(named, (CONFIG,), local_files_only=True)
        except PlaceError:
            return None
    return None


def read_backbone(folder: Path, shapes: Shapes | None = None) -> PreTrainedConfig:
    """Read the configuration in a folder as transformers' own class of its model_type, and no code in the folder.

    Raises CheckpointError, also where it does not fit the weights' `shapes`; ValueError for an unknown model_type.
    """
    described = read_json(folder / CONFIG)
    if shapes is not None:
        check_config(described, shapes, folder / CONFIG)
    kind = described.pop("model_type", None)
    if not isinstance(kind, str):
        raise ValueError(f"{folder / CONFIG} names no model_type; expected that of a model of transformers")
    return AutoConfig.for_model(kind, **described)


def load_original(
    opened: Opened,
    text_config: PreTrainedConfig | dict | None = None,
    vision_config: PreTrainedConfig | dict | None = None,
    kernel_taps: int | None = None,
    insert: str | None = None,
) -> Original:
    """Read an original checkpoint: its safetensors files (pickles are refused before)."""
    config = convert_config(
        opened.config, opened.shapes, opened.folder, text_config, vision_config, kernel_taps, insert
    )
    state = read_weights(opened.folder)
    return Original(config, *convert_state_dict(state, config), len(state))


def original_chat_template(template: str | None) -> str:
    """Return a chat template that words a prompt as the original does: `<image>` in front of the question.

    It is the tokenizer's own `template` around that, or that alone where it has none.
    """
    return FLAT_MESSAGES + (template if template is not None else PLAIN_TEMPLATE)
