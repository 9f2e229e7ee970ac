"""Weights prepacked by oneDNN: bfloat16 layers on a CPU, without gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .onednn import PRODUCT, onednn_has, onednn_multiplies, product

FULL_ROWS = 6
FULL_ROWS_FROM = 2**21
"""Weights from which on it is worth to fill up rows."""


def can_prepack() -> bool:
    """Tell whether oneDNN multiplies bfloat16 with prepacked weights on this CPU (AVX-512 or better)."""
    return onednn_has(PRODUCT, "_reorder_linear_weight") and onednn_multiplies(torch.bfloat16)


def prepacked(weight: Tensor) -> Tensor:
    """weight [N,K] bfloat16 on a CPU -> the same in the layout that oneDNN reads fastest, of as many bytes.

    Opaque to everything but `linear_prepacked`; `.to_dense()` gives the weight back. Milliseconds of a product with
    weights [N,K] that no cache holds, two cores of an AMD EPYC with AVX-512, torch 2.13,
    `python -m firebolt_vl.bench.linear`:

        rows  N      K     as they are  prepacked
           1   4608  1024         0.69       0.49
           1   1024  4608         0.59       0.43
           1  65536  1024         9.99       6.05
          33   4608  1024         1.25       0.94
          33   1024  4608         1.24       1.04
        1280   4608  1024        32.2       32.5
        1280   1024  4608        30.9       28.7
    """
    return torch.ops.mkldnn._reorder_linear_weight(weight, 1)


def linear_prepacked(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b with `packed` = prepacked(W); x [...,K] and bias [N] in bfloat16 -> [...,N], without gradients.

    Fewer than six rows of large weights are computed as six, the others zeros: oneDNN's loop over six takes 0.8 to 0.95
    of the time of its loop over one (AMD EPYC with AVX-512, two cores), for the same bits.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = len(rows)
    if count < FULL_ROWS and packed.numel() >= FULL_ROWS_FROM:
        rows = F.pad(rows, (0, 0, 0, FULL_ROWS - count))
    return product(rows, packed, bias)[:count].view(*x.shape[:-1], -1)
