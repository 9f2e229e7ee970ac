"""Layers that read the same input, their weights held as one: one product in the place of several."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...cmm.classes import change_class
from ...cmm.linear import is_plain
from .copies import CopyOfWeights
from .mapped_memory import release_file_pages

State = dict[str, Tensor]
Form = Callable[[nn.Linear, State], None]
"""Puts tensors, named as in a state dict, into an empty layer, which becomes of the class that holds them."""


class PartOfJoined(nn.Linear):
    """Linear layer y = x W^T whose W are some rows of a larger layer's, `whole`, which other parts have as well.

    A module that calls all of them with one input calls `whole` instead (`whole_of`). State dicts have each part's own
    rows, under its own names. A part whose numbers are moved to another device or dtype is a layer by itself again.
    """

    whole: Any  # an nn.Linear, or a class of it that holds its weights in another form
    start: int
    form: Form  # of the whole, and of this layer if it is to be by itself

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.out_features)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]  # it stands for the parameter
        """Return W [N,K], made anew at each call."""
        return self.whole.weight[self.rows].as_subclass(CopyOfWeights)

    @property
    def weight_dtype(self) -> torch.dtype:
        dtype = getattr(self.whole, "weight_dtype", None)
        return self.whole.weight.dtype if dtype is None else dtype

    @property
    def packed_bytes(self) -> int:
        """Return the bytes of the whole, told by its first part."""
        if self.start > 0:
            return 0
        held = (*self.whole.parameters(), *self.whole.buffers())
        return getattr(self.whole, "packed_bytes", 0) + sum(tensor.nbytes for tensor in held)

    def forward(self, input: Tensor) -> Tensor:
        return self.whole(input)[..., self.rows]

    def _own(self) -> State:
        """This part's rows of everything that the state dict of the whole has."""
        state: State = {}
        self.whole._save_to_state_dict(state, "", False)
        return {name: tensor[self.rows].clone() for name, tensor in state.items()}

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in self._own().items()})

    def _apply(self, fn, recurse=True):
        before = torch.empty(0, dtype=getattr(self.whole, "held_dtype", self.weight_dtype))
        after = fn(before)
        if (after.device, after.dtype) == (before.device, before.dtype):
            return self
        state, form = self._own(), self.form
        for name in ("whole", "start", "form"):
            del self.__dict__[name]
        change_class(self, nn.Linear)
        self.register_parameter("weight", None)
        form(self, state)
        return self._apply(fn, recurse)  # that of its class now


def whole_of(parent: nn.Module, names: tuple[str, ...]) -> Any:
    """Return the layer that stands for the parts of these names; None where one of them is to be called by itself.

    That is so where they are not joined, and where something stands around one of them (`is_plain`).
    """
    parts = [getattr(parent, name) for name in names]
    return parts[0].whole if all(is_plain(part, PartOfJoined) for part in parts) else None


def joinable(model: nn.Module, kind: type[nn.Linear]) -> Iterator[list[Any]]:
    """Yield the layers that read the same input, of each module that says so in `same_input`, if all are of a class."""
    for parent in list(model.modules()):
        if (names := getattr(parent, "same_input", None)) is not None:
            parts = [getattr(parent, name) for name in names]
            if all(is_plain(part, kind) and part.bias is None for part in parts):
                yield parts


@torch.no_grad()
def join(parts: list[Any], form: Form) -> None:
    """Make parts of one whole of layers of a class and without biases, in place; all they hold has N rows."""
    first, start = parts[0], 0
    names = [name for name, tensor in (*first.named_parameters(), *first.named_buffers()) if tensor is not None]
    whole = nn.Linear(first.in_features, sum(part.out_features for part in parts), bias=False, device="meta")
    state = {name: torch.cat([getattr(part, name).detach() for part in parts]) for name in names}
    for part in parts:
        for name in names:
            release_file_pages(getattr(part, name))
            delattr(part, name)
        change_class(part, nn.Linear)
        change_class(part, PartOfJoined)
        # Past nn.Module, which would take the whole for a layer inside this one.
        part.__dict__.update(whole=whole, start=start, form=form)
        start += part.out_features
    form(whole, state)


__all__ = ["PartOfJoined", "State", "join", "joinable", "whole_of"]
