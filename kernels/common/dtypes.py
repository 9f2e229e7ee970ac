"""The dtype in which an op computes: half inputs are widened, float64 stays float64."""

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any of the tensors (None is skipped) has 64-bit numbers, else float32."""
    wide = (torch.float64, torch.complex128)
    return torch.float64 if any(t is not None and t.dtype in wide for t in tensors) else torch.float32


def complex_dtype(real: torch.dtype) -> torch.dtype:
    """The complex dtype whose parts are float32 or float64."""
    return torch.complex128 if real == torch.float64 else torch.complex64
