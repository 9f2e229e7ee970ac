"""Gradients of gradients and torch.func's transforms give what they give of the definitions."""

import pytest
import torch
from torch.func import functional_call, grad, jvp, vmap

from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.kernels import (
    blocks,
    cauchy,
    diagonal_scan,
    fft_conv,
    gated_scan,
    selective_scan,
    use_implementation,
    vandermonde,
)

WIDE = torch.float64
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def normal(*shape, dtype=WIDE):
    return torch.randn(shape, dtype=dtype)


def poles(*shape):
    return torch.complex(-torch.rand(shape, dtype=WIDE) - 0.1, normal(*shape))


def calls() -> dict:
    """name -> (function of tensors, the tensors)."""
    torch.manual_seed(0)
    return {
        "fft_conv, direct": (fft_conv, (normal(2, 3, 9), normal(3, 5))),
        "fft_conv, chunked": (fft_conv, (normal(2, 3, 70), normal(3, 70))),
        "fft_conv, by spectra": (fft_conv, (normal(1, 2, 1500), normal(2, 1500))),
        "fft_conv of what depends on it": (
            lambda x, k: fft_conv(x * x, k * x.mean(0)),
            (normal(2, 3, 40), normal(3, 40)),
        ),
        "vandermonde": (lambda c, z: vandermonde(c, z, 37), (normal(3, 5, dtype=torch.complex128), poles(3, 5))),
        "cauchy": (cauchy, (normal(2, 3, 5, dtype=torch.complex128), 1j * normal(7), poles(3, 5))),
        "selective_scan": (
            lambda u, d, a, b, c: selective_scan(u, d, -a.exp(), b, c, delta_softplus=True, return_last_state=True),
            (normal(2, 4, 20), normal(2, 4, 20), normal(4, 3), normal(2, 3, 20), normal(4, 3)),
        ),
        "diagonal_scan": (
            lambda u, z, b, c: diagonal_scan(u, z, b, c)[0],
            (normal(2, 3, 20), poles(3, 4).exp(), *(normal(3, 4, dtype=torch.complex128) for _ in range(2))),
        ),
        "gated_scan": (
            lambda a, b, h: gated_scan(a.sigmoid(), b, h),
            (normal(2, 20, 3), normal(2, 20, 3), normal(2, 3)),
        ),
    }


def loss(made) -> torch.Tensor:
    made = made if isinstance(made, tuple) else (made,)
    return sum((torch.view_as_real(y) if y.is_complex() else y).pow(3).sum() for y in made)


def both(run) -> tuple:
    """What it gives of the form that runs on a CPU, and of the definition."""
    found = run()
    with use_implementation("reference"):
        return found, run()


@pytest.mark.parametrize("name", calls())
def test_second_gradients_are_those_of_the_definition(name):
    function, tensors = calls()[name]
    seeds = [torch.randn_like(x) for x in tensors]

    def twice():
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        first = torch.autograd.grad(loss(function(*leaves)), leaves, create_graph=True)
        return first, torch.autograd.grad(first, leaves, seeds)

    found, wanted = both(twice)
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("name", calls())
def test_transforms_are_those_of_the_definition(name):
    function, tensors = calls()[name]
    numbers = tuple(range(len(tensors)))
    plain = [x.detach().clone().requires_grad_() for x in tensors]
    wanted = torch.autograd.grad(loss(function(*plain)), plain)
    torch.testing.assert_close(grad(lambda *x: loss(function(*x)), argnums=numbers)(*tensors), wanted, **CLOSE)

    rows = tuple(torch.stack([x, 0.5 * x]) for x in tensors)
    alone = [function(*(row[i] for row in rows)) for i in range(2)]
    found = vmap(function)(*rows)
    if isinstance(found, tuple):
        wanted = tuple(torch.stack(parts) for parts in zip(*alone))
    else:
        wanted = torch.stack(alone)
    torch.testing.assert_close(found, wanted, **CLOSE)

    tangents = tuple(torch.randn_like(x) for x in tensors)
    found, wanted = both(lambda: jvp(function, tensors, tangents))
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("ssm", ["s4", "s4d", "mamba", "liquid"])
@pytest.mark.parametrize("time", [4, 70])
def test_of_the_layer_too(ssm, time, monkeypatch):
    monkeypatch.setattr(blocks, "CPU_BLOCK", 2**10)  # also where the kernel is made by blocks
    layer = CrossModalModulator(CMMConfig(text_width=32, grid_width=24, heads=2, head_dim=8, top_k=2, ssm=ssm))
    layer = layer.double().eval()
    grids, text = normal(1, 5, 24), normal(1, time, 32)
    weights = {name: weight.detach() for name, weight in layer.named_parameters()}

    def of(weights, text):
        return functional_call(layer, weights, (text, grids)).pow(3).sum()

    wanted = torch.autograd.grad(layer(text, grids).pow(3).sum(), list(layer.parameters()), allow_unused=True)
    for found, plain in zip(grad(of)(weights, text).values(), wanted):
        torch.testing.assert_close(found, torch.zeros_like(found) if plain is None else plain, **CLOSE)
    rows = torch.stack([text, 0.5 * text])
    alone = torch.stack([layer(row, grids) for row in rows])
    torch.testing.assert_close(vmap(lambda row: layer(row, grids))(rows), alone, **CLOSE)
    tangent = torch.randn_like(text)
    _, along = jvp(lambda text: of(weights, text), (text,), (tangent,))
    torch.testing.assert_close(along, (grad(of, argnums=1)(weights, text) * tangent).sum(), **CLOSE)

    def twice():
        leaf = text.clone().requires_grad_()
        (first,) = torch.autograd.grad(of(weights, leaf), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)

    torch.testing.assert_close(*both(twice), **CLOSE)
