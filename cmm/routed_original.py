"""A routed connector from the parameters of Firebolt-VL V2."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..kernels.checks import check_shapes
from .original import BLOCKS
from .precision import wide_dtype
from .routed_config import RoutedConfig
from .s4 import S4
from .s4d import S4D

# The original's name -> ours and the shape: V patch width, D text width, H the experts' hidden width, E experts.
ROUTER = {
    "router.importance.weight": ("router.importance.weight", "1 V"),
    "router.importance.bias": ("router.importance.bias", "1"),
    "expert_connector.router.weight": ("experts.router.weight", "E V"),
    "expert_connector.router.bias": ("experts.router.bias", "E"),
}
EXPERT = {
    "ff.0.weight": ("up.weight", "H V"),
    "ff.0.bias": ("up.bias", "H"),
    "ff.3.weight": ("down.weight", "V H"),
    "ff.3.bias": ("down.bias", "V"),
}
ATTENTION = {
    "norm.weight": ("norm.weight", "V"),
    "norm.bias": ("norm.bias", "V"),
    "attn.in_proj_weight": ("qkv.weight", "3V V"),
    "attn.in_proj_bias": ("qkv.bias", "3V"),
    "attn.out_proj.weight": ("out.weight", "V V"),
    "attn.out_proj.bias": ("out.bias", "V"),
    "ff.0.weight": ("up.weight", "F V"),
    "ff.0.bias": ("up.bias", "F"),
    "ff.3.weight": ("down.weight", "V F"),
    "ff.3.bias": ("down.bias", "V"),
}
# What tells which block stands in `ssm`, perhaps below a name of its own.
MARKS = {"self_attn": "attn.in_proj_weight", "s4": "layer.kernel.A_real", "s4d": "kernel.log_A_real"}
BLOCK_CLASSES = {"s4": S4, "s4d": S4D}
FOLDED = "layer.kernel.l_kernel"


def routed_from_original(routed_class: type, state_dict: Mapping[str, Tensor], config: Mapping[str, Any]):
    """Make a routed connector from the original's state dict: see `Routed.from_original`."""
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    found = {"original_behaviour": True, **sizes_of(shapes), **config}
    names = _names(shapes, found)
    _check(state_dict, names, found)
    connector = routed_class(RoutedConfig(**found)).to(state_dict["router.importance.weight"].dtype)
    ours = {new: state_dict[old] for old, (new, _) in names.items()}
    connector.load_state_dict(ours | _block(state_dict, found["ssm"]))
    return connector


def sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of RoutedConfig that the original's shapes tell. Raises ValueError where one is not there."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in shapes or len(shapes[name]) != axes:
            told = f"has shape {list(shapes[name])}" if name in shapes else "is missing"
            raise ValueError(f"from_original: {name} {told}; expected {axes} axes, as Firebolt-VL V2 has them")
        return shapes[name]

    experts, width = shape("expert_connector.router.weight", 2)
    layers = len({name for name in shapes if re.fullmatch(r"visual_proj\.proj\.\d+\.weight", name)}) // 2
    ssm, prefix = _ssm(shapes)
    sizes = {
        "text_width": shape("visual_proj.proj.0.weight", 2)[0],
        "grid_width": width,
        "experts": experts,
        "expert_width": shape("expert_connector.experts.0.ff.0.weight", 2)[0],
        "projector_layers": layers,
        "ssm": ssm,
    }
    if ssm == "self_attn":
        hidden = shape(f"{prefix}ff.0.weight", 2)[0]
        if hidden % width:
            raise ValueError(f"from_original: {prefix}ff.0.weight has {hidden} rows; expected a multiple of {width}")
        return {**sizes, "ffn_multiplier": hidden // width}
    return {**sizes, "state_size": 2 * shape(prefix + MARKS[ssm], 2)[1]}


def _ssm(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """The kind of block in `ssm`, and what stands before its names."""
    for ssm, mark in MARKS.items():
        for name in shapes:
            if re.fullmatch(rf"ssm\.(\w+\.)?{re.escape(mark)}", name):
                return ssm, name.removesuffix(mark)
    raise ValueError(
        f"from_original: ssm has none of {', '.join(MARKS.values())}; expected the block of {', '.join(MARKS)}"
    )


def _names(shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The original's names -> ours and the shape, but for those of a state-space model."""
    names = dict(ROUTER)
    for number in range(found["experts"]):
        for old, (new, pattern) in EXPERT.items():
            names[f"expert_connector.experts.{number}.{old}"] = (f"experts.experts.{number}.{new}", pattern)
    for layer in range(found["projector_layers"]):
        # Each layer of the original is four modules: Linear, LayerNorm, GELU, Dropout.
        linear, norm = (f"visual_proj.proj.{4 * layer + step}" for step in (0, 1))
        names[f"{linear}.weight"] = (f"projector.linears.{layer}.weight", "D D" if layer else "D V")
        names[f"{linear}.bias"] = (f"projector.linears.{layer}.bias", "D")
        names |= {f"{norm}.{one}": (f"projector.norms.{layer}.{one}", "D") for one in ("weight", "bias")}
    if found["ssm"] == "self_attn":
        _, prefix = _ssm(shapes)
        names |= {prefix + old: (f"ssm.{new}", pattern) for old, (new, pattern) in ATTENTION.items()}
    return names


def _check(state_dict: Mapping[str, Tensor], names: Mapping[str, tuple[str, str]], found: Mapping[str, Any]) -> None:
    """Check keys and shapes. Raises ValueError, which names the keys."""
    ssm, prefix = _ssm({name: tuple(tensor.shape) for name, tensor in state_dict.items()})
    patterns = {name: pattern for name, (_, pattern) in names.items()}
    free = set()
    if ssm in BLOCKS:
        block = {prefix + name: pattern for name, pattern in BLOCKS[ssm].items()}
        # There the letter D is the width, which is V here.
        patterns |= {name: re.sub(r"\bD\b", "V", pattern).replace("2D", "2V") for name, pattern in block.items()}
        free = {prefix + FOLDED} if ssm == "s4" else set()
    missing = [name for name in (*patterns, *free) if name not in state_dict]
    unknown = [name for name in state_dict if name not in patterns and name not in free]
    if missing or unknown:
        told = [f"{kind} {', '.join(some)}" for kind, some in (("missing", missing), ("unknown", unknown)) if some]
        raise ValueError(f"from_original: state_dict has {' and '.join(told)}; expected the keys of Firebolt-VL V2")
    width = found["grid_width"]
    numbers = {f"{n}V": str(n * width) for n in (2, 3)}
    check_shapes(
        "from_original",
        {"V": width, "D": found["text_width"], "E": found["experts"]},
        **{name: (state_dict[name], _filled(pattern, numbers)) for name, pattern in patterns.items()},
    )


def _filled(pattern: str, numbers: Mapping[str, str]) -> str:
    return " ".join(numbers.get(letter, letter) for letter in pattern.split())


def _block(state_dict: Mapping[str, Tensor], ssm: str) -> dict[str, Tensor]:
    """The parameters of a state-space model, in float32 or wider."""
    if ssm not in BLOCK_CLASSES:
        return {}
    _, prefix = _ssm({name: tuple(tensor.shape) for name, tensor in state_dict.items()})
    block = {
        name.removeprefix(prefix): tensor.to(wide_dtype(tensor.dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
    with torch.no_grad():
        made = BLOCK_CLASSES[ssm].original_parameters(block)
    return {f"ssm.{name}": tensor for name, tensor in made.items()}
