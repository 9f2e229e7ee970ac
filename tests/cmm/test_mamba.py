"""Mamba: the block against its definition written out, and its initialisation."""

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close

from firebolt_vl.cmm import Mamba
from firebolt_vl.kernels import reference


def written_out(block: Mamba, x: torch.Tensor) -> torch.Tensor:
    """Mamba's own block, line by line in its layout [B, E, L]."""
    inner, gate = F.linear(x, block.in_proj.weight).mT.chunk(2, dim=1)
    padded = F.pad(inner, (block.conv_taps - 1, 0))
    inner = F.silu(F.conv1d(padded, block.conv.weight, block.conv.bias, groups=block.inner_width))
    sizes = [block.dt_rank, block.state_size, block.state_size]
    dt, B, C = F.linear(inner.mT, block.x_proj.weight).split(sizes, dim=-1)
    dt = F.linear(dt, block.dt_proj.weight).mT
    A = -torch.exp(block.kernel.A_log)
    y = reference.selective_scan(
        inner, dt, A, B.mT, C.mT, block.kernel.D, z=gate, delta_bias=block.kernel.dt_bias, delta_softplus=True
    )
    return F.linear(y.mT, block.out_proj.weight)


def test_block_is_its_definition_in_value_and_gradient():
    torch.manual_seed(1)
    block = Mamba(5, 3, conv_taps=3).double()
    x = torch.randn(2, 11, 5, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, 11, 5, dtype=torch.float64)
    wanted = written_out(block, x)
    sources = [x, *block.parameters()]
    wanted_gradients = torch.autograd.grad((wanted * cotangent).sum(), sources)
    found = block(x)
    assert_close(found, wanted, 1e-12)
    for gradient, wanted_gradient in zip(torch.autograd.grad((found * cotangent).sum(), sources), wanted_gradients):
        assert_close(gradient, wanted_gradient, 1e-11)


def test_sizes_and_initialisation_are_mamba_s():
    torch.manual_seed(1)
    block = Mamba(100)
    assert (block.state_size, block.conv_taps, block.inner_width, block.dt_rank) == (16, 4, 200, 7)
    assert_close(-block.kernel.A(), torch.arange(1.0, 17).expand(200, 16), 1e-6)
    assert (block.kernel.D == 1).all()
    dt = F.softplus(block.kernel.dt_bias)
    assert 0.99e-3 < dt.min() < 2e-3 < 5e-2 < dt.max() < 1.01e-1
    assert block.dt_proj.weight.abs().max() <= 7**-0.5
    assert {name for name, _ in block.named_parameters() if name.endswith("bias")} == {"conv.bias", "kernel.dt_bias"}


def test_one_convolution_tap_needs_no_window():
    torch.manual_seed(1)
    block = Mamba(4, 3, conv_taps=1).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    y, state = block.prefill(x[:, :3])
    assert state.tensors["conv"].shape == (2, 0, 8)
    assert_close(torch.cat([y, block.prefill(x[:, 3:], state=state)[0]], 1), block(x), 1e-12)


@pytest.mark.parametrize("name", ["state_size", "conv_taps", "expand"])
def test_wrong_sizes_are_refused_by_name(name):
    with pytest.raises(ValueError, match=name):
        Mamba(4, **{name: 0})
