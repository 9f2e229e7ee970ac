"""Blocks of a large computation, so that intermediate arrays stay small."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .transforms import transformed

CPU_BLOCK = 2**17
GPU_BLOCK = 2**26


def block_numbers(device: torch.device) -> int:
    """Numbers that one intermediate array should have.

    On a CPU as many as fit a core's cache: larger arrays are also given back to the system and faulted in again by
    every call. On a GPU only memory is a limit.
    """
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK


def by_blocks(function: Callable[..., Tensor], tensors: Sequence[Tensor], size: int) -> Tensor:
    """function(*tensors), `size` entries of the first axis at a time: beyond the result one block's work is held.

    What the backward pass needs of a block is made again there.
    """
    count = tensors[0].shape[0]
    if size >= count or transformed():  # torch.func knows no checkpoints
        return function(*tensors)
    blocks = list(zip(*(tensor.split(size) for tensor in tensors)))
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        run = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([run(*block) for block in blocks])
    first = function(*blocks[0])
    result = first.new_empty(count, *first.shape[1:])
    result[:size] = first
    for block, part in zip(blocks[1:], result[size:].split(size)):
        part.copy_(function(*block))
    return result
