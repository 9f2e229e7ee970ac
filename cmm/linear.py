"""A dense layer that computes by `firebolt_vl.kernels.linear`."""

from torch import Tensor, nn

from ..kernels.linear import linear
from .classes import change_classes


class Linear(nn.Linear):
    """y = x W^T + b: `torch.nn.Linear`, by `firebolt_vl.kernels.linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def without_bias(layer: nn.Module, x: Tensor) -> Tensor:
    """x W^T; where an adapter (peft) stands around the layer, what it adds too."""
    if isinstance(layer, nn.Linear):
        return linear(x, layer.weight)
    return layer(x) - layer.bias


def compute_fast(module: nn.Module) -> None:
    """Let all `nn.Linear` in a module compute as `Linear`; their parameters and names stay as they are."""
    change_classes(module, nn.Linear, Linear)


def compute_as_torch(module: nn.Module) -> None:
    """Undo `compute_fast`."""
    change_classes(module, Linear, nn.Linear)
