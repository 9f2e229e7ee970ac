"""Matrix multiplication of a layer: the reference implementation."""

from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b."""
    y = x @ weight.mT
    return y if bias is None else y + bias
