"""Muon on a CPU, against PyTorch's own and its equations in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from firebolt_vl.train.muon import Muon

# Wide, tall, square, alike but for a transposition, one row.
SHAPES = [(24, 40), (40, 24), (24, 40), (32, 32), (1, 7)]
RATE, DECAY, STEPS = 0.02, 0.1, 3


def gradients() -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(STEPS)]


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [0.01 * torch.randn(shape, generator=generator) for shape in SHAPES]


def moved(make) -> list[Tensor]:
    """The matrices after a few steps, in float64."""
    weights = [nn.Parameter(w) for w in start()]
    optimizer = make(weights)
    for given in gradients():
        for weight, gradient in zip(weights, given):
            weight.grad = gradient.clone()
        optimizer.step()
    return [w.detach().double() for w in weights]


def by_equations() -> list[Tensor]:
    weights, buffers = ([w.double() for w in start()], [torch.zeros(shape).double() for shape in SHAPES])
    for given in gradients():
        for w, b, g in zip(weights, buffers, given):
            b.copy_(0.95 * b + 0.05 * g.double())
            x = 0.05 * g.double() + 0.95 * b
            x = x / x.norm()
            for _ in range(5):
                gram = x @ x.mT
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            w.copy_((1 - RATE * DECAY) * w - 0.2 * math.sqrt(max(w.shape)) * RATE * x)
    return weights


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest error of a step, as a share of the largest step."""
    size = max((one - first.double()).abs().max() for one, first in zip(wanted, start()))
    return max(float((a - b).abs().max() / size) for a, b in zip(found, wanted))


def test_steps_on_a_cpu_are_those_of_the_equations_in_single_precision():
    wanted = by_equations()
    ours = error(moved(lambda w: Muon(w, RATE, DECAY)), wanted)
    theirs = error(
        moved(lambda w: torch.optim.Muon(w, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")), wanted
    )
    # The same steps: PyTorch's err by roundings to 8 bits, ours by roundings to 24, 65,536 times as small.
    assert theirs < 0.1
    assert ours < theirs / 1000


def test_what_has_no_gradient_stays_and_the_closure_makes_gradients():
    learning, still = nn.Parameter(torch.eye(4)), nn.Parameter(torch.eye(4))
    optimizer = Muon([learning, still], RATE, DECAY)

    def closure():
        optimizer.zero_grad()
        loss = (2 * learning).square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 16
    assert torch.equal(still, torch.eye(4))
    assert not torch.equal(learning, torch.eye(4))


def test_a_gradient_of_zeros_moves_nothing_but_by_decay():
    weight = nn.Parameter(torch.ones(3, 5))
    weight.grad = torch.zeros(3, 5)
    Muon([weight], RATE, DECAY).step()
    assert torch.equal(weight, torch.ones(3, 5) * (1 - RATE * DECAY))


def test_weights_in_half_precision_keep_their_dtype():
    weight = nn.Parameter(torch.ones(3, 5, dtype=torch.bfloat16))
    weight.grad = torch.ones(3, 5, dtype=torch.bfloat16)
    optimizer = Muon([weight], RATE, DECAY)
    optimizer.step()
    assert weight.dtype == optimizer.state[weight]["momentum_buffer"].dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_only_matrices_are_taken(shape):
    with pytest.raises(ValueError, match="2D"):
        Muon([nn.Parameter(torch.ones(shape))], RATE)
