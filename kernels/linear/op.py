"""Matrix multiplication of a layer: the public function."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import pytorch


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b: `torch.nn.functional.linear`, on every device, in every dtype, with the same gradients.

    Three things are different on a CPU. Where oneDNN is faster (`ONEDNN`) it makes the float32 products, forward
    and backward. Where half precision is slow (`SLOW_HALVES`) several rows are multiplied in float32, some of the
    weights at a time, and rounded at the end, without gradients. And `x` is always one matrix of rows: a slice such
    as the last column of [B,T,K] makes PyTorch copy the whole of W first, which for the head of a language model
    takes as long as all of its layers. Exported graphs, which run on other machines, have PyTorch's own.

    Arguments: x [..., K]; weight [N,K]; bias [N] or None. Returns [..., N].
    """
    if x.device.type != "cpu" or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    return pytorch.linear(x, weight, bias)
