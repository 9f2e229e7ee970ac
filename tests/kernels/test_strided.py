"""Tensors with their strides as one parameter of a kernel."""

import pytest
import torch
import triton
import triton.language as tl
from triton_kernels import DEVICE, MARKS

from firebolt_vl.kernels.common.launch import launch
from firebolt_vl.kernels.common.strided import Strided, load, store, strided

pytestmark = MARKS


@triton.jit
def scale_kept_kernel(x, y, kept, T, D, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    """y[b, t, d] = 2 x[b, t, d] where kept[b, t], 0 elsewhere."""
    b = tl.program_id(0).to(tl.int64)
    t, d = tl.arange(0, BLOCK_T)[:, None], tl.arange(0, BLOCK_D)[None, :]
    inside = (t < T) & (d < D)
    read = inside
    if kept is not None:
        read &= load(kept, (b, t), t < T, other=0) != 0
    store(y, (b, t, d), 2 * load(x, (b, t, d), read), inside)


def layouts(x):
    """x, and the same numbers with other strides."""
    B, T, D = x.shape
    spaced = torch.full((B, T, 3 * D), torch.nan, device=x.device)[..., ::3]
    return {
        "contiguous": x,
        "transposed": x.mT.contiguous().mT,
        "spaced": spaced.copy_(x),
        "broadcast": x[:1, :, :1].expand(B, T, D),
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "spaced", "broadcast"])
def test_elements_are_found_whatever_the_strides(layout, masked):
    x = layouts(torch.randn(2, 5, 6, device=DEVICE))[layout]
    kept = (torch.rand(5, 2, device=DEVICE) < 0.5).T if masked else None
    y = torch.full((2, 6, 5), torch.nan, device=DEVICE).mT
    launch(scale_kept_kernel, (2,), strided(x), strided(y), strided(kept), 5, 6, BLOCK_T=8, BLOCK_D=8, num_warps=1)
    assert torch.equal(y, 2 * x * (1 if kept is None else kept[..., None]))


def test_nothing_stays_nothing():
    assert strided(None) is None
    x = torch.zeros(2, 3).T
    assert strided(x) == Strided(x, (1, 3))
