"""The dtype in which an op computes: half inputs are widened, float64 stays float64."""

import functools

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The real dtype to compute in: float64 if any of the tensors (None is skipped) is 64 bits wide, else float32."""
    dtypes = [tensor.dtype.to_real() for tensor in tensors if tensor is not None]
    return functools.reduce(torch.promote_types, dtypes, torch.float32)
