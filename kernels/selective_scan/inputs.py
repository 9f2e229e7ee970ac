"""The inputs of a selective scan as one value, from the registered op to the launchers."""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """The tensors of `selective_scan`, with shapes as there, and whether step sizes pass through softplus."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    softplus: bool
    initial_state: Tensor | None
    cu_seqlens: Tensor | None

    @property
    def texts(self) -> int:
        """The number of rows of a state."""
        return self.u.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1
