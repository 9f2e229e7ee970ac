"""Dense layers: plain `nn.Linear`s, computed by `firebolt_vl.kernels.linear` where nothing stands around them.

What changes models (quantisers, adapters, sharding, offloading) asks for `nn.Linear` by its exact class, wraps it, or
brings its weights only while it is called. So a layer's class stays, and its weights are read outside of it only where
that is the same as calling it (`is_plain`).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from ..kernels.checks import REAL
from ..kernels.linear import SLOW_HALVES, has_faster_product, linear
from .classes import change_class

Kind = TypeVar("Kind", bound=nn.Module)

HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def is_plain(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Tell whether calling a module is `kind.forward` of its parameters and no more, so that they may be read instead.

    Its class is `kind` itself, neither derived (quantised, parametrised, sharded) nor another (an adapter around it);
    its forward is that of its class (accelerate puts another one into the module); no hook runs beside it.
    """
    return (
        type(module) is kind
        and "forward" not in module.__dict__
        and not any(getattr(module, name, None) for name in HOOKS)
    )


def product(layer: nn.Module, x: Tensor) -> Tensor:
    """y = x W^T + b, what `layer` gives of x: by `kernels.linear` for a plain `nn.Linear`, else by the layer itself."""
    return linear(x, layer.weight, layer.bias) if is_plain(layer, nn.Linear) else layer(x)


def product_and_bias(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """x W^T [B,N,K'] and b [B,K'] of an affine layer y = x W^T + b, for x [B,N,K].

    Whatever stands around the layer or in its place takes part in both: b is what comes of a zero beside each row's x
    (docs/mathematics.md, (2.12)).
    """
    y = product(layer, torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], 1))
    bias = y[:, -1]
    return y[:, :-1] - bias[:, None], bias


def in_dtype_of(layer: nn.Module, x: Tensor, otherwise: torch.dtype) -> Tensor:
    """x in the dtype that a layer's weights have; in `otherwise` where these are a quantiser's codes.

    A layer that makes its `weight` anew at each look says in `weight_dtype` what it would be.
    """
    if (dtype := getattr(layer, "weight_dtype", None)) is not None:
        return x.to(dtype)
    weight = getattr(layer, "weight", None)
    return x.to(weight.dtype if isinstance(weight, Tensor) and weight.dtype in REAL else otherwise)


class Linear(nn.Linear):
    """y = x W^T + b: `torch.nn.Linear`, by `firebolt_vl.kernels.linear`; for the time of `fast_products`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class WideConv2d(nn.Conv2d):
    """A convolution in half precision, computed in float32 and rounded once; for the time of `fast_products`."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or input.dtype != weight.dtype:
            return super().forward(input)
        y = self._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return y.to(input.dtype)


FAST = {nn.Linear: Linear, nn.Conv2d: WideConv2d}


def _is_slow(module: nn.Module) -> bool:
    if is_plain(module, nn.Linear):
        return has_faster_product(module.weight)
    return is_plain(module, nn.Conv2d) and module.weight.device.type == "cpu" and module.weight.dtype in SLOW_HALVES


@contextmanager
def fast_products(module: nn.Module) -> Iterator[None]:
    """Let the plain `nn.Linear`s of a module compute as `Linear` meanwhile, where that is faster on this machine.

    For layers of other libraries, which `product` does not reach. Outside their class is `nn.Linear`. Convolutions of
    images too, in half precision that is slow here.
    """
    changed = [inner for inner in module.modules() if _is_slow(inner)]
    for inner in changed:
        change_class(inner, FAST[type(inner)])
    try:
        yield
    finally:
        for inner in changed:
            for stock, fast in FAST.items():
                if type(inner) is fast:
                    change_class(inner, stock)


def fast_without_gradients(module: nn.Module) -> AbstractContextManager[None]:
    """Return `fast_products` of a module; nothing where gradients are wanted or a graph is made.

    For towers that look at images before `generate` begins, which makes its own products fast.
    """
    plain = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return nullcontext() if plain else fast_products(module)
