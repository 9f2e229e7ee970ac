"""bfloat16 weights in the layout that a CPU reads fastest: made so after loading, for generation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...cmm.classes import change_class
from ...kernels.linear import LEAST_WEIGHTS, can_prepack, linear_prepacked, prepacked
from .copies import CopyOfWeights, refuse_adapters
from .joined import State, join, joinable
from .mapped_memory import release_file_pages


class PrepackedLinear(nn.Linear):
    """Linear layer y = x W^T + b with W in oneDNN's own layout (`kernels.linear.prepacked`), bfloat16 on a CPU.

    As many bytes as W, which `weight` makes anew at each call. A module of class `nn.Linear` is turned into one in
    place (`prepack_linear`); its bias stays as it is. W has no gradient, x has one. `tied` is the embedding that has
    the same W, so that they are saved as one. Where it is moved to another device or dtype it becomes an ordinary layer
    again.
    """

    packed: Tensor
    tied: nn.Embedding | None = None
    weight_dtype = held_dtype = torch.bfloat16

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  # it stands for the parameter
        """Return W [N,K] bfloat16, a copy."""
        return self._dense().as_subclass(CopyOfWeights)

    def _dense(self) -> Tensor:
        return self.packed.to_dense()

    @property
    def packed_bytes(self) -> int:
        return self.in_features * self.out_features * self.packed.element_size()

    def forward(self, input: Tensor) -> Tensor:
        given = (input,) if self.bias is None else (input, self.bias)
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in given)
        if differentiable or not input.numel() or torch.is_autocast_enabled("cpu") or input.dtype != torch.bfloat16:
            return F.linear(input, self._dense(), self.bias)
        return linear_prepacked(input, self.packed, self.bias)

    def _apply(self, fn, recurse=True):
        self._become_plain(self._dense())
        nn.Module._apply(self, fn, recurse)
        prepack_linear(self)
        return self

    def _become_plain(self, weight: Tensor) -> None:
        """Be the layer that this one was made of, with W = weight."""
        self.__dict__.pop("packed")
        change_class(self, nn.Linear)
        self.register_parameter("weight", nn.Parameter(weight, requires_grad=False))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self._dense() if self.tied is None else self.tied.weight.detach()

    def __getstate__(self):
        """Copies and pickles hold W itself: oneDNN's layout is this machine's, and torch cannot copy it."""
        return {**self.__dict__, "packed": self._dense()}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._become_plain(state["packed"])
        prepack_linear(self)


def _can_prepack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and can_prepack()


def prepacked_form(linear: nn.Linear, state: State) -> None:
    """Give a linear layer the weights of a state dict, prepacked where they can be."""
    linear.register_parameter("weight", nn.Parameter(state["weight"], requires_grad=False))
    prepack_linear(linear)


@torch.no_grad()
def prepack_linear(linear: nn.Linear) -> bool:
    """Make a PrepackedLinear of `linear`, in place, if its weights are bfloat16 on a CPU that has such products."""
    weight = linear.weight
    if not _can_prepack(weight):
        return False
    packed = prepacked(weight.detach())
    release_file_pages(weight)
    del linear._parameters["weight"]
    linear.packed = packed
    change_class(linear, PrepackedLinear)
    return True


def prepack_weights(model: nn.Module) -> nn.Module:
    """Put a model's bfloat16 linear layers into the layout that this CPU reads fastest, in place; returns the model.

    For generation on a CPU: the products of a token take about three quarters of the time, those of a short prompt too
    (`python -m firebolt_vl.bench.linear`), with the same results to the last bits. Layer by layer, so that no second
    copy of the weights is ever there (on Linux not of a checkpoint's mapped file either), except of the head where it
    is tied to the embedding, which stays as it is. Those that read the same input, as queries, keys and values do,
    become one. Layers of fewer than half a million weights, in other dtypes or on other devices stay as they are.
    Raises ValueError for a model with adapters (peft).

    The model can generate, run forward, give gradients of its inputs, be copied, moved and saved (as the ordinary
    weights that it was made of, since the layout is this machine's); it has no gradients for those weights.
    """
    refuse_adapters("prepack_weights", model)
    model.requires_grad_(False)
    for parts in joinable(model, nn.Linear):
        weights = [part.weight for part in parts]
        if all(map(_can_prepack, weights)) and sum(weight.numel() for weight in weights) >= LEAST_WEIGHTS:
            join(parts, prepacked_form)
    embeddings = {id(inner.weight): inner for inner in model.modules() if isinstance(inner, nn.Embedding)}
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.numel() >= LEAST_WEIGHTS:
            tied = embeddings.get(id(module.weight))
            if prepack_linear(module) and tied is not None:
                module.__dict__["tied"] = tied  # past nn.Module, which would take it for a part of this layer
    return model


def is_prepacked(model: nn.Module) -> bool:
    return any(isinstance(module, PrepackedLinear) for module in model.modules())
