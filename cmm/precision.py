"""Parameters that stay float32 or wider whatever the model around them is cast to, and what is computed from them."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.symbolic import power_of_two, varies
from ..kernels.transforms import transformed

NARROW = (torch.float16, torch.bfloat16)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of recurrences and statistics over values of `dtype`: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


class WideParameters(nn.Module):
    """A module whose own parameters `.half()`, `.to(torch.bfloat16)` and the like move but never narrow.

    A recurrence's poles lie within 1e-3 of the unit circle: bfloat16 cannot tell them from 1. Subclasses hold the
    parameters of a state-space model (no weight decay belongs on them) and nothing else.
    """

    def __init__(self):
        super().__init__()
        self._forget_derived()

    def forward(self, run: Callable[[], Any]) -> Any:
        """Return `run()`, which reads these parameters: in a call, for which tools bring what they keep elsewhere."""
        return run()

    def new_parameter(self, *shape: int) -> nn.Parameter:
        """Uninitialised, float32 or wider also where the default dtype is narrower."""
        return nn.Parameter(torch.empty(*shape, dtype=wide_dtype(torch.get_default_dtype())))

    def _apply(self, fn, recurse=True):
        def move_only(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype in NARROW and tensor.dtype not in NARROW:
                return tensor.to(applied.device)  # from the original: what `applied` lost cannot be widened back
            return applied

        self._forget_derived()
        return super()._apply(move_only, recurse)

    @property
    def records_gradients(self) -> bool:
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters(recurse=False))

    def taps_of(self, length: int, compute: Callable[[int], Tensor]) -> Tensor:
        """Compute the convolution kernel [D, length] by `compute(length)`; for an open length that of the longest.

        What is kept, and what `torch.compile` sees, is as long as the next power of two, and sliced: one compiled graph
        serves all lengths up to it.
        """
        if self.records_gradients and not torch.compiler.is_compiling():
            return compute(length)
        longer = power_of_two(length)
        taps = self.derived(("taps", longer), lambda: compute(longer))
        return taps if varies(length) else taps[:, :length]  # a slice of open length would ask whether it is all

    def derived(self, name: Hashable, compute: Callable[[], Any]) -> Any:
        """`compute()`, a function of the parameters alone, kept until one of them changes.

        Where gradients must flow to the parameters it is computed afresh. A change is seen by the parameters' version
        counters; writing through `.data` goes past them, and is seen at the next `train()` or `eval()`.
        """
        parameters = list(self.parameters(recurse=False))
        if (
            self.records_gradients
            or torch.compiler.is_compiling()
            or transformed()  # the parameters stand for others here
            or any(parameter.is_inference() for parameter in parameters)  # these have no version counter
        ):
            return compute()
        versions = [(parameter.data_ptr(), parameter._version, parameter.device) for parameter in parameters]
        if versions != self._derived_versions:
            # Holding the parameters' memory keeps their addresses from being used again while they are the key.
            self._derived, self._derived_versions = {}, versions
            self._derived_from = [parameter.detach() for parameter in parameters]
        if name not in self._derived:
            # Tensors born in inference mode could not be used in a later call that records gradients.
            with torch.inference_mode(False), torch.no_grad():
                self._derived[name] = compute()
        return self._derived[name]

    def _forget_derived(self) -> None:
        self._derived, self._derived_versions, self._derived_from = {}, None, None

    def train(self, mode: bool = True):
        self._forget_derived()
        return super().train(mode)

    def __getstate__(self):
        """Copies and pickles take the parameters, not what was computed from them."""
        return {**self.__dict__, "_derived": {}, "_derived_versions": None, "_derived_from": None}
