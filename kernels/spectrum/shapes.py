"""The axes of a Cauchy product."""

import math

from torch import Tensor, broadcast_shapes


def by_channel(v: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """v [channels, rows, N] and w [channels, N]: rows are the leading axes that v alone has."""
    leading = broadcast_shapes(v.shape[:-1], w.shape[:-1])
    rows = leading[: len(leading) - (w.ndim - 1)]
    channels, N = leading[len(rows) :], w.shape[-1]
    v = v.expand(*leading, N).reshape(math.prod(rows), math.prod(channels), N).transpose(0, 1)
    return v, w.expand(*channels, N).reshape(math.prod(channels), N)
