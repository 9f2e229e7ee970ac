"""Weights made anew of what a layer holds in another form: to be read, not to be written to."""

import torch
from torch import Tensor, nn


class CopyOfWeights(Tensor):
    """W of a layer that holds it in another form. Its `data` takes nothing, since the layer would not have it.

    Adapters (peft) are merged that way. Whatever is computed of it is an ordinary tensor.
    """

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @property
    def data(self) -> Tensor:
        return self.as_subclass(Tensor).detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        raise RuntimeError(
            "weight.data is set of a layer whose weights are in 8 or 4 bits or prepacked; expected no change of them: "
            "merge adapters (merge_and_unload) before quantize_int8, quantize_int4 and prepack_weights"
        )


def refuse_adapters(where: str, model: nn.Module) -> None:
    """Raise ValueError where something stands around a layer of the model: it would be rounded, or never merged."""
    around = next((name for name, _ in model.named_modules() if name.rpartition(".")[2] == "base_layer"), None)
    if around is not None:
        raise ValueError(
            f"{where}: model has an adapter around {around.removesuffix('.base_layer')}; expected adapters that are "
            "merged (merge_and_unload)"
        )
