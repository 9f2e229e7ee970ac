"""Which implementation of an op runs on a device: the one place that decides it."""

from typing import NamedTuple

import torch

OPS = (
    "correlation_context",
    "grounded_film",
    "film_residual",
    "vandermonde",
    "cauchy",
    "fft_conv",
    "diagonal_scan",
    "selective_scan",
)


class Implementation(NamedTuple):
    name: str
    """`"pytorch"` or `"triton"`."""
    why: str
    """One sentence for people (`firebolt info` prints it)."""


def implementation(op: str, device: torch.device | str) -> Implementation:
    """What runs for `op` (one of `OPS`) on tensors of `device`."""
    if op not in OPS:
        raise ValueError(f"op is {op!r}; wanted one of {', '.join(OPS)}")
    kind = torch.device(device).type
    if kind == "cpu":
        return Implementation("pytorch", "on a CPU the exact PyTorch form runs; Triton kernels are for GPUs")
    return Implementation("pytorch", f"the Triton kernel of {op} is not built in: the PyTorch form runs on {kind}")
