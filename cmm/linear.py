"""A dense layer that computes by `firebolt_vl.kernels.linear`."""

from torch import Tensor, nn

from ..kernels.linear import linear


class Linear(nn.Linear):
    """y = x W^T + b: `torch.nn.Linear`, by `firebolt_vl.kernels.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def without_bias(layer: nn.Module, x: Tensor) -> Tensor:
    """x W^T; where an adapter (peft) stands around the layer, what it adds too."""
    if isinstance(layer, nn.Linear):
        return linear(x, layer.weight)
    return layer(x) - layer.bias


def compute_fast(module: nn.Module) -> None:
    """Let all `nn.Linear` in a module compute as `Linear`; their parameters and names stay as they are."""
    for inner in module.modules():
        if type(inner) is nn.Linear:
            inner.__class__ = Linear
