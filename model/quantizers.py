"""Quantisers of other libraries, as `from_pretrained(..., quantization_config=...)` asks for them."""

from collections.abc import Callable

import torch
from torch import nn

from ..kernels.checks import REAL


def check_quantized(model: nn.Module, build: Callable[[], nn.Module], method: str) -> None:
    """Compare a model that a quantiser has loaded with the one that its configuration makes.

    Raises ValueError where no module is of another class, and no parameter of another kind, than in `build()`.
    """
    with torch.device("meta"):
        stock = {name: type(module) for name, module in build().named_modules()}
    replaced = any(type(module) is not stock.get(name) for name, module in model.named_modules())
    held_otherwise = any(type(p) is not nn.Parameter or p.dtype not in REAL for p in model.parameters())
    if not replaced and not held_otherwise:
        raise ValueError(
            f"from_pretrained: quantization_config is given ({method}), and it has changed no layer; expected a method "
            "that knows this model's layers (nn.Linear), or a configuration that leaves some to it"
        )


__all__ = ["check_quantized"]
