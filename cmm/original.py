"""A cross-modal modulator from the parameters of the original's `TokenGridCorrFiLMS4`."""

import torch
from torch import Tensor

from ..kernels.checks import check_one_of, check_shapes
from .config import CMMConfig
from .precision import wide_dtype
from .s4 import S4
from .s4d import S4D

# The original's name -> ours and the shape: D text width, V grid width, C heads x head_dim, F the FFN's hidden width.
LAYER = {
    "norm_in.weight": ("norm_in.weight", "D"),
    "norm_in.bias": ("norm_in.bias", "D"),
    "q_proj.weight": ("q_proj.weight", "C D"),
    "k_proj.weight": ("k_proj.weight", "C V"),
    "v_proj.weight": ("v_proj.weight", "D V"),
    "film_in.weight": ("film_in.weight", "2D D"),
    "film_in.bias": ("film_in.bias", "2D"),
    "film_out.weight": ("film_out.weight", "2D D"),
    "film_out.bias": ("film_out.bias", "2D"),
    "ffn.0.weight": ("ffn.norm.weight", "D"),
    "ffn.0.bias": ("ffn.norm.bias", "D"),
    "ffn.1.weight": ("ffn.up.weight", "F D"),
    "ffn.1.bias": ("ffn.up.bias", "F"),
    "ffn.4.weight": ("ffn.down.weight", "D F"),
    "ffn.4.bias": ("ffn.down.bias", "D"),
    "norm_out.weight": ("norm_out.weight", "D"),
    "norm_out.bias": ("norm_out.bias", "D"),
}
GATE = "mod_gate"
# The SSM block's names and shapes (N the stored modes); its class maps them.
BLOCK = "s4."
BLOCKS = {
    "s4": {
        "layer.D": "1 D",
        "layer.kernel.A_real": "D N",
        "layer.kernel.A_imag": "D N",
        "layer.kernel.P": "1 D N 2",
        "layer.kernel.B": "1 D N 2",
        "layer.kernel.C": "1 D N 2",
        "layer.kernel.inv_dt": "D 1",
        "output_linear.0.weight": "2D D 1",
        "output_linear.0.bias": "2D",
    },
    "s4d": {
        "D": "D",
        "kernel.log_A_real": "D N",
        "kernel.A_imag": "D N",
        "kernel.C": "D N 2",
        "kernel.log_dt": "D",
        "output_linear.0.weight": "2D D 1",
        "output_linear.0.bias": "2D",
    },
}
SCALARS = {"s4": (GATE, f"{BLOCK}layer.kernel.l_kernel"), "s4d": (GATE,)}


def modulator_from_original(
    modulator_class: type,
    state_dict: dict[str, Tensor],
    *,
    heads: int,
    head_dim: int,
    top_k: int | None,
    ssm: str,
    kernel_taps: int | None = None,
):
    """Make a modulator from the original's state dict: see `CrossModalModulator.from_original`."""
    check_one_of("from_original", "ssm", ssm, BLOCKS)
    sizes = _check(state_dict, ssm)
    if sizes["C"] != heads * head_dim:
        raise ValueError(
            f"from_original: q_proj.weight has {sizes['C']} rows; expected heads x head_dim = {heads} x {head_dim}"
        )
    if sizes["F"] % sizes["D"]:
        raise ValueError(f"from_original: ffn.1.weight has {sizes['F']} rows; expected a multiple of {sizes['D']}")
    config = CMMConfig(
        text_width=sizes["D"],
        grid_width=sizes["V"],
        heads=heads,
        head_dim=head_dim,
        top_k=top_k,
        ssm=ssm,
        state_size=2 * sizes["N"],
        kernel_taps=kernel_taps,
        grid_positions=False,
        ffn_multiplier=sizes["F"] // sizes["D"],
    )
    modulator = modulator_class(config).to(state_dict[GATE].dtype)
    with torch.no_grad():
        modulator.load_state_dict(renamed(state_dict, ssm))
    return modulator


def _check(state_dict: dict[str, Tensor], ssm: str) -> dict[str, int]:
    """Check keys and shapes, and return the sizes of the letters. Raises ValueError, which names the keys."""
    patterns = {name: pattern for name, (_, pattern) in LAYER.items()}
    patterns |= {BLOCK + name: pattern for name, pattern in BLOCKS[ssm].items()}
    missing = [name for name in (*patterns, *SCALARS[ssm]) if name not in state_dict]
    unknown = [name for name in state_dict if name not in patterns and name not in SCALARS[ssm]]
    if missing or unknown:
        found = [f"{kind} {', '.join(names)}" for kind, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ValueError(
            f"from_original: state_dict has {' and '.join(found)}; expected the keys of the original's {ssm}"
        )
    for name in SCALARS[ssm]:
        if state_dict[name].numel() != 1:
            raise ValueError(f"from_original: {name} has shape {list(state_dict[name].shape)}; expected one element")
    width = state_dict["norm_in.weight"].shape[0]
    shapes = {
        name: (state_dict[name], pattern.replace("2D", str(2 * width)).replace("D", str(width)))
        for name, pattern in patterns.items()
    }
    return {"D": width, **check_shapes("from_original", **shapes)}


def renamed(state_dict: dict[str, Tensor], ssm: str) -> dict[str, Tensor]:
    """Rename the parameters, differentiably. The SSM's are computed with, and kept, in float32 or wider."""
    block = {
        name.removeprefix(BLOCK): tensor.to(wide_dtype(tensor.dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in state_dict.items()
        if name.startswith(BLOCK)
    }
    parameters = {ours: state_dict[theirs] for theirs, (ours, _) in LAYER.items()}
    parameters["gate"] = state_dict[GATE].reshape(1)
    block_class = {"s4": S4, "s4d": S4D}[ssm]
    return parameters | {f"ssm.{name}": tensor for name, tensor in block_class.original_parameters(block).items()}
