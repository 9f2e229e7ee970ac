"""Weights that accelerate keeps elsewhere, in the host's memory or on disk, until their module is called."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def to_device_of(model: nn.Module, tensor: Tensor) -> Tensor:
    """Return an input on the device of a model's weights; where it is, if these are kept elsewhere.

    They are on PyTorch's meta device then, and each module brings what it is called with to where it computes.
    """
    device = next(model.parameters()).device
    return tensor if device.type == "meta" else tensor.to(device)


@contextmanager
def parameters_present(*modules: nn.Module) -> Iterator[None]:
    """Have the modules' own parameters there while they are read outside of their `forward`.

    By the hook that accelerate has put on each of them, as transformers calls it too; tested with accelerate 1.10 to
    1.15, device maps to disk with 1.15 alone (1.10 mixes parameters up). Without one nothing is kept of parameters that
    are not there, and nothing is done.
    """
    absent = [module for module in modules if any(p.is_meta for p in module.parameters(recurse=False))]
    # Not by `:=`, whose name torch.compile does not find in a comprehension.
    found = [(module, getattr(module, "_hf_hook", None)) for module in absent]
    hooks = [(module, hook) for module, hook in found if hook is not None]
    for module, hook in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in hooks:
            hook.post_forward(module, None)
