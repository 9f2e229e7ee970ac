"""Checkpoints of the original Firebolt-VL (model_type "fireboltlm"): its configuration and state dict, made ours."""

import json
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from ..cmm import CrossModalModulator
from .configuration_firebolt import FireboltConfig

ORIGINAL_MODEL_TYPE = "fireboltlm"
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
SAFETENSORS, PICKLES = "model.safetensors", "pytorch_model.bin"
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
    return config.get("model_type") == ORIGINAL_MODEL_TYPE


def convert_state_dict(state: dict[str, Tensor], config: FireboltConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Our state dict from the original's, and the keys that have no influence there and are left out.

    Raises ValueError where a key is unknown: nothing of a checkpoint is dropped in silence.
    """
    converted: dict[str, Tensor] = {}
    fuser: dict[str, Tensor] = {}
    dead, unknown = [], []
    for key, tensor in state.items():
        if key.startswith(FUSER):
            fuser[key.removeprefix(FUSER)] = tensor
        elif key.startswith(DECODER):
            converted["model.language_model." + key.removeprefix(DECODER)] = tensor
        elif key.startswith(HEAD):
            converted["lm_head." + key.removeprefix(HEAD)] = tensor
        elif key.startswith(VISION):
            converted["model.vision_tower." + key.removeprefix(VISION)] = tensor
        elif key.startswith(DEAD):
            dead.append(key)
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"state_dict: unknown keys {', '.join(sorted(unknown)[:5])} ({len(unknown)} in all)")
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
    return converted, sorted(dead)


def convert_config(
    original: dict,
    state: dict[str, Tensor],
    folder: str | os.PathLike | None = None,
    text_config: PreTrainedConfig | dict | None = None,
    vision_config: PreTrainedConfig | dict | None = None,
    kernel_taps: int | None = None,
) -> FireboltConfig:
    """Our configuration of an original checkpoint: which SSM its fuser has shows in the keys of its state dict.

    The backbones' configurations are resolved as a local folder (as named, or below the checkpoint's `folder`), then a
    hub id, then `text_config` / `vision_config`. Raises ValueError where none of them is there, or for a fusion
    strategy other than the modulator.
    """
    if original.get("fuse_strategy", "cossm") != "cossm":
        raise ValueError(f"fuse_strategy: {original['fuse_strategy']!r} came, only 'cossm' can be converted")
    text = _backbone_config(original.get("lm_name_or_path"), folder, text_config, "lm_name_or_path", "text_config")
    vision = _backbone_config(
        original.get("vision_ckpt_path"), folder, vision_config, "vision_ckpt_path", "vision_config"
    )
    ssm = "s4" if any(key.startswith(FUSER + "s4.layer.") for key in state) else "s4d"
    return FireboltConfig(
        text_config=text,
        vision_config=vision,
        cmm_config={
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "top_k": TOP_K,
            "top_k_mode": "renormalize",
            "ssm": ssm,
            "kernel_taps": kernel_taps if ssm == "s4" else None,
            "dropout": DROPOUT,
            "grid_positions": False,
        },
        bos_token_id=original.get("bos_token_id"),
        eos_token_id=original.get("eos_token_id"),
        pad_token_id=original.get("pad_token_id"),
    )


def _backbone_config(named, folder, given, key: str, argument: str) -> PreTrainedConfig | dict:
    """The configuration of a backbone that the original only names; the vision tower's part of a SigLIP."""
    places = [named] if named else []
    if named and folder is not None:
        places.insert(0, str(Path(folder) / named))
    found = next((AutoConfig.from_pretrained(place) for place in places if Path(place).is_dir()), None)
    if found is None and named and given is None:
        try:
            found = AutoConfig.from_pretrained(named)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{key}: {named!r} is neither a local folder nor to be had from the hub "
                f"({str(error).splitlines()[0]}); pass {argument}="
            ) from None
    if found is None:
        found = given
    if found is None:
        raise ValueError(f"{key}: the checkpoint names no backbone; pass {argument}=")
    return getattr(found, "vision_config", found) if argument == "vision_config" else found


def load_original(
    name: str | os.PathLike,
    original: dict,
    text_config: PreTrainedConfig | dict | None = None,
    vision_config: PreTrainedConfig | dict | None = None,
    kernel_taps: int | None = None,
    **hub,
) -> Original:
    """Read an original checkpoint: a folder or hub id with safetensors files or, where there are none, pickles."""
    state = read_weights(name, **hub)
    folder = name if Path(name).is_dir() else None
    config = convert_config(original, state, folder, text_config, vision_config, kernel_taps)
    return Original(config, *convert_state_dict(state, config), len(state))


def read_weights(name: str | os.PathLike, **hub) -> dict[str, Tensor]:
    """All tensors of a checkpoint, in one file or in shards with an index; safetensors before pickles.

    A pickle is opened by the loader that builds tensors and nothing else (`weights_only`).
    Raises OSError where there are no weights, ValueError for a pickle that holds anything but tensors.
    """
    for weights, read in ((SAFETENSORS, load_file), (PICKLES, _read_pickle)):
        single = cached_file(name, weights, _raise_exceptions_for_missing_entries=False, **hub)
        if single is not None:
            return read(single)
        index = cached_file(name, f"{weights}.index.json", _raise_exceptions_for_missing_entries=False, **hub)
        if index is None:
            continue
        state: dict[str, Tensor] = {}
        for shard in sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())):
            if Path(shard).name != shard:
                raise ValueError(f"{index}: names {shard!r}, a file beside it is wanted")
            state.update(read(cached_file(name, shard, **hub)))
        return state
    raise OSError(f"{name}: none of {SAFETENSORS}, {PICKLES} and their indices is there")


def _read_pickle(path: str) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path}: it holds more than tensors, and opening it could run code: refused") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: a state dict, names and tensors alone, is wanted")
    return state


def original_chat_template(template: str | None) -> str:
    """A chat template for images and text that words a prompt as the original does: `<image>` in front of the question,
    in the tokenizer's own `template`, or as it stands where it has none."""
    return FLAT_MESSAGES + (template if template is not None else PLAIN_TEMPLATE)
