"""oneDNN's matrix multiplication on a CPU: the product itself, registered for the compiler."""

import torch
from torch import Tensor

from ..common.registered import register

PRODUCT = "_linear_pointwise"
"""PyTorch's name for oneDNN's product with rows of weights as they are, which its compiler calls too."""
HALVES = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
"""PyTorch's names for oneDNN's answer whether it multiplies half precision on this CPU."""


def onednn_has(*names: str) -> bool:
    """Tell whether this PyTorch was built with oneDNN, and has these of its ops."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN has products in a dtype of `HALVES` on this CPU (on x86: AVX-512, in float16 its FP16)."""
    return onednn_has(HALVES[dtype]) and getattr(torch.ops.mkldnn, HALVES[dtype])()


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M,K], weight [N,K], bias [N] or None, float32 on a CPU -> [M,N], by oneDNN and without gradients."""
    return getattr(torch.ops.mkldnn, PRODUCT)(x, weight, bias, "none", [], "")


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`onednn_product`, as an op of its own where a graph is made."""
    return (_onednn_linear if torch.compiler.is_compiling() else onednn_product)(x, weight, bias)


# The compiler knows the product only with weights that it packs itself: it gets it whole. Not of device_types="cpu",
# since prepacked weights are of a backend of their own.
_onednn_linear = register(
    "onednn_linear",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    onednn_product,
    lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
)
