"""Autocast for an op: its tensors are cast to autocast's dtype, and nothing inside the op is cast again."""

import contextlib

import torch
from torch import Tensor


def _active(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def to_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the dtype of the autocast region (float64 stays), or as they are outside of one."""
    device = tensors[0].device
    if not _active(device):
        return tensors
    dtype = torch.get_autocast_dtype(device.type)
    return tuple(tensor if tensor.dtype == torch.float64 else tensor.to(dtype) for tensor in tensors)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A region in which float32 statistics and sums stay float32."""
    return torch.autocast(device.type, enabled=False) if _active(device) else contextlib.nullcontext()
