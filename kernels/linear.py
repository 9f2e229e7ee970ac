"""The dense product, by whichever of the libraries in PyTorch is fast on this processor."""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common.transforms import transformed

PRODUCT = "_linear_pointwise"
"""PyTorch's name for oneDNN's product with rows of weights as they are, which its compiler calls too."""

NOT_INTEL = ("AuthenticAMD", "HygonGenuine")
LEAST_WEIGHTS = 2**19
"""From so many weights on: below, what it takes to start oneDNN's product (some 30 us) is more than it saves."""
FULL_ROWS = 6
FULL_ROWS_FROM = 2**21
"""Weights from which on it is worth to fill up rows."""


def _maker() -> str:
    """Of the processor, as x86 processors tell it: "GenuineIntel", "AuthenticAMD"; something else where it is not
    known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor().rpartition(" ")[2]


def _onednn_is_faster() -> bool:
    """Whether float32 products go to oneDNN here: on processors where MKL takes its slower paths.

    By the maker and not by a measurement, so that a run and its repetition take the same one. Milliseconds of a product
    with weights [N,K] that no cache holds, two cores of an AMD EPYC with AVX-512, torch 2.13,
    `python -m firebolt_vl.bench.linear`:

        rows  N      K     MKL    oneDNN
           1   4608  1024   1.52    1.00
           1   1024  4608   1.34    0.86
           1  65536  1024  21.0    12.9
          33   4608  1024   7.42    2.93
          33   1024  4608   3.15    2.50
        1280   4608  1024  93.3    70.3
        1280   1024  4608  80.9    61.8
    """
    return _onednn_has(PRODUCT) and torch.backends.mkl.is_available() and _maker() in NOT_INTEL


def _onednn_has(*names: str) -> bool:
    """Whether this PyTorch was built with oneDNN, and has these of its ops."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


ONEDNN = _onednn_is_faster()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b: `torch.nn.functional.linear`, on every device, in every dtype, with the same gradients.

    Two things are different on a CPU. Where oneDNN is faster (`ONEDNN`) it makes the float32 products, forward
    and backward. And `x` is always one matrix of rows: a slice such as the last column of [B,T,K] makes PyTorch
    copy the whole of W first, which for the head of a language model takes as long as all of its layers.

    Arguments: x [..., K]; weight [N,K]; bias [N] or None. Returns [..., N].
    """
    if x.device.type != "cpu" or x.dim() < 2 or not x.numel() or x.shape[-1] != weight.shape[-1]:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    y = (_by_onednn if ONEDNN and _onednn_takes(x, weight, bias) else F.linear)(rows, weight, bias)
    return y.view(*x.shape[:-1], -1)


def _onednn_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if weight.numel() < LEAST_WEIGHTS or torch.is_autocast_enabled("cpu"):
        return False
    if len(x) == 1 and not weight.is_contiguous():  # the one case in which it is slower: a gradient of a single row
        return False
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return False
    if torch.compiler.is_compiling():
        return True
    # It has neither forward-mode gradients nor vmap, and takes no tensors of a kind of their own.
    return all(type(t) in (Tensor, nn.Parameter) for t in tensors) and not transformed()


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [M,K], weight [N,K], bias [N] or None, float32 on a CPU -> [M,N], by oneDNN and without gradients."""
    return getattr(torch.ops.mkldnn, PRODUCT)(x, weight, bias, "none", [], "")


def can_prepack() -> bool:
    """Whether oneDNN has bfloat16 products with weights in a layout of its own here (CPUs with AVX-512 or better)."""
    there = _onednn_has(PRODUCT, "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    return there and torch.ops.mkldnn._is_mkldnn_bf16_supported()


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
    return _product(rows, packed, bias)[:count].view(*x.shape[:-1], -1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return (_registered if torch.compiler.is_compiling() else onednn_product)(x, weight, bias)


class _Linear(torch.autograd.Function):
    """g W and g^T x are products of rows as well."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx, g: Tensor):
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear(g, weight.mT) if of_x else None,
            linear(g.mT, x.mT) if of_weight else None,
            g.sum(0) if of_bias else None,
        )


# The compiler knows the product only with weights that it packs itself: it gets it whole. Not of device_types="cpu",
# since prepacked weights are of a backend of their own.
@torch.library.custom_op("firebolt_vl::onednn_linear", mutates_args=())
def _registered(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return onednn_product(x, weight, bias)


@_registered.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])
