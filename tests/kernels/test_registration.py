"""Registration: the one rule for gradients that are absent, and when a call goes through PyTorch's dispatcher."""

import traceback

import pytest
import torch
from torch.fx.experimental import proxy_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from firebolt_vl.kernels.common.registered import Backward, register

seen = []


def _backward(grads, x, scale, factor):
    seen.append(grads)
    first, second, kept = grads
    return factor * first + (0 if second is None else second), None if scale is None else (first * kept).sum(0)


def _fake(x, scale, factor):
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape)


calls = []


def _forward(x, scale, factor):
    calls.append((factor, any("custom_ops" in frame.filename for frame in traceback.extract_stack())))
    return factor * x if scale is None else factor * x * scale, x.clone(), factor * x


pair = register(
    "test_pair",
    "(Tensor x, Tensor? scale, float factor) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    Backward("test_pair_backward", ("x", "scale"), _backward),
    kept=1,
)


@pytest.fixture(autouse=True)
def forget():
    seen.clear()
    calls.clear()


def inputs(*shape):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(*shape, generator=generator).requires_grad_()


def test_the_absent_gradient_of_the_first_output_is_zeros():
    x, scale = inputs(4, 3), inputs(3)
    _, second, _ = pair(x, scale, 2.0)
    of_x, of_scale = torch.autograd.grad(second.sum(), (x, scale))
    assert torch.equal(of_x, torch.ones(4, 3))
    assert torch.equal(of_scale, torch.zeros(3))


def test_the_absent_gradient_of_another_output_is_none():
    first, _, _ = pair(inputs(4, 3), None, 2.0)
    first.sum().backward()
    assert [grad is None for grad in seen[0]] == [False, True, False]


def test_a_kept_output_comes_as_it_is():
    x, scale = inputs(4, 3), inputs(3)
    first, _, kept = pair(x, scale, 2.0)
    first.sum().backward()
    assert torch.equal(seen[0][2], kept)
    torch.testing.assert_close(scale.grad, (2 * x).sum(0))


def test_nothing_runs_where_no_argument_needs_a_gradient():
    outer = inputs(4, 3)
    first, _, _ = pair(outer.detach(), None, 2.0)
    (first * outer).sum().backward()
    assert seen == []


@pytest.mark.parametrize("scale", [None, inputs(3)])
def test_opcheck_passes(scale):
    torch.library.opcheck(torch.ops.firebolt_vl.test_pair.default, (inputs(4, 3), scale, 2.0))


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_without_gradients_the_forward_runs_itself():
    x = inputs(4, 3)
    pair(x.detach(), None, 2)
    with torch.no_grad():
        pair(x, None, 2)
    assert calls == [(2.0, False)] * 2
    assert [type(factor) for factor, _ in calls] == [float] * 2


def test_whoever_looks_at_ops_sees_this_one():
    x = inputs(4, 3)
    pair(x, None, 2.0)
    assert calls == [(2.0, True)]
    with Watching() as watching:
        pair(x.detach(), None, 2.0)
    traced = proxy_tensor.make_fx(Pair())(x.detach()).graph
    exported = torch.export.export(Pair(), (x.detach(),)).graph
    for ops in (watching.seen, *([str(node.target) for node in graph.nodes] for graph in (traced, exported))):
        assert "firebolt_vl.test_pair.default" in ops


class Pair(torch.nn.Module):
    def forward(self, x):
        return pair(x, None, 2.0)[0]
