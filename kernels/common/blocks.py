"""How much of a large computation to hold at a time."""

import torch

CPU_BLOCK = 2**17
GPU_BLOCK = 2**26


def block_numbers(device: torch.device) -> int:
    """Numbers that one intermediate array should have.

    On a CPU as many as fit a core's cache: larger arrays are also given back to the system and faulted in again by
    every call. On a GPU only memory is a limit.
    """
    return CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
