"""Matrix multiplication of a layer on a CPU, by whichever of the libraries in PyTorch is fast on this processor."""

import platform
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..symbolic import varies
from ..transforms import transformed
from .onednn import HALVES, PRODUCT, onednn_has, onednn_multiplies, product

NOT_INTEL = ("AuthenticAMD", "HygonGenuine")
LEAST_WEIGHTS = 2**19
"""From so many weights on: below, what it takes to start oneDNN's product (some 30 us) is more than it saves."""


def _maker() -> str:
    """Return the processor's maker, as x86 processors tell it: "GenuineIntel", "AuthenticAMD"; another text where not
    known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor().rpartition(" ")[2]


def _onednn_is_faster() -> bool:
    """Tell whether float32 products go to oneDNN here: on processors where MKL takes its slower paths.

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
    return onednn_has(PRODUCT) and torch.backends.mkl.is_available() and _maker() in NOT_INTEL


ONEDNN = _onednn_is_faster()
WIDENED_ROWS = 8
WIDENED_WEIGHTS = 2**16
PIECE = 2**20
"""Weights that are widened at a time: 4 MB, which caches hold until they are multiplied."""


def _slow_halves() -> frozenset[torch.dtype]:
    """Return the dtypes of half precision that PyTorch multiplies here in loops of its own, oneDNN having none.

    On x86, that is without AVX-512 in bfloat16 and without its FP16 in float16. A single row, which a token is, is
    bound by the reading of weights, and fast in them; several rows are faster widened to float32, from about
    `WIDENED_ROWS` on. Milliseconds of a product with weights [4608,1024], one thread of a busy AVX2 AMD EPYC, torch
    2.13:

        rows  float32  bfloat16  widened  float16  widened
           1      4.2       1.5     11.3      2.3      9.8
           8      9.9      17.6     15.8     16.0     14.9
          33     31.4      77.7     36.9    106.6     35.4
         256    137.4    1055.0    168.7    906.0    175.0
    """
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return frozenset()
    return frozenset(dtype for dtype in HALVES if not onednn_multiplies(dtype))


SLOW_HALVES = _slow_halves()


def has_faster_product(weight: Tensor) -> bool:
    """Tell whether products with a weight are made here in another way than by `F.linear`, which is faster."""
    if weight.device.type != "cpu":
        return False
    if weight.dtype in SLOW_HALVES:
        return weight.numel() >= WIDENED_WEIGHTS
    return ONEDNN and weight.dtype == torch.float32 and weight.numel() >= LEAST_WEIGHTS


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b of tensors on a CPU."""
    if x.dim() < 2 or not x.numel() or x.shape[-1] != weight.shape[-1]:
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    if weight.dtype in SLOW_HALVES and _is_widened(rows, weight, bias):
        y = _by_float32(rows, weight, bias)
    else:
        y = (_by_onednn if ONEDNN and _onednn_takes(x, weight, bias) else F.linear)(rows, weight, bias)
    return y.view(*x.shape[:-1], -1)


def _is_widened(rows: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = (rows, weight) if bias is None else (rows, weight, bias)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if len(rows) < WIDENED_ROWS or weight.numel() < WIDENED_WEIGHTS or weight.dim() != 2:
        return False
    if any(t.dtype != weight.dtype for t in tensors) or not _are_plain(tensors):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def _by_float32(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x W^T + b in half precision, multiplied and added in float32 and rounded once, without gradients."""
    y, wide = rows.new_empty(len(rows), len(weight)), rows.float()
    step = max(1, PIECE // weight.shape[1])
    for start in range(0, len(weight), step):
        piece = slice(start, start + step)
        y[:, piece] = linear(wide, weight[piece].float(), None if bias is None else bias[piece].float())
    return y


def _onednn_takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if weight.numel() < LEAST_WEIGHTS or torch.is_autocast_enabled("cpu"):
        return False
    if (
        not varies(x.shape[0]) and x.shape[0] == 1 and not weight.is_contiguous()
    ):  # the one case in which it is slower: a gradient of a single row
        return False
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        return False
    if torch.compiler.is_compiling():
        return True
    return _are_plain(tensors)


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    """Tell whether tensors are of no kind of their own, and neither forward-mode gradients nor vmap are under way."""
    return all(type(t) in (Tensor, nn.Parameter) for t in tensors) and not transformed()


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


class _Linear(torch.autograd.Function):
    """g W and g^T x are products of rows as well."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight) = grads, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear(g, weight.mT) if of_x else None,
            linear(g.mT, x.mT) if of_weight else None,
            g.sum(0) if of_bias else None,
        )
