"""The tensors of a state update in one layout, whether channels are given in heads or not."""

from typing import NamedTuple

from torch import Tensor


class Step(NamedTuple):
    """The tensors of `selective_state_update` as views, with heads [H,P] of channels, and whether steps pass through
    softplus. Head h takes group h // (H / G)."""

    state: Tensor
    """[B,H,P,N]."""
    x: Tensor
    """[B,H,P], and so dt and z."""
    dt: Tensor
    A: Tensor
    """[H,P,N]."""
    B: Tensor
    """[B,G,N]; C likewise."""
    C: Tensor
    D: Tensor | None
    """[H,P], and so dt_bias."""
    z: Tensor | None
    dt_bias: Tensor | None
    softplus: bool


def by_heads(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
) -> Step:
    """Return views of the arguments; without heads a group of channels is one."""
    B, C = (matrix.unsqueeze(1) if matrix.ndim == 2 else matrix for matrix in (B, C))
    if state.ndim == 3:
        sizes = B.shape[1], -1
        state, x, dt = (tensor.unflatten(1, sizes) for tensor in (state, x, dt))
        A, z = A.unflatten(0, sizes), None if z is None else z.unflatten(1, sizes)
        D, dt_bias = (None if tensor is None else tensor.unflatten(0, sizes) for tensor in (D, dt_bias))
    return Step(state, x, dt, A, B, C, D, z, dt_bias, softplus)
