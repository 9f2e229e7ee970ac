"""S4 as a layer for sequences: it learns to tell a number that it read 200 positions ago.

The same layer reads a whole sequence (a convolution, in training) or one number at a time (a recurrence with a state of
fixed size).

    python examples/s4_as_a_sequence_layer.py
"""

import torch
from torch import Tensor, nn

from firebolt_vl.cmm import S4

WIDTH, LENGTH = 32, 200
STEPS, BATCH = 120, 32


class Reader(nn.Module):
    """Linear, S4 with a residual connection, Linear."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(2, WIDTH)
        self.s4 = S4(WIDTH, state_size=64)
        self.leave = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """What it believes after each of x [B,T,2]: [B,T]."""
        x = self.enter(x)
        return self.leave(x + self.s4(x))[..., 0]

    @torch.no_grad()
    def read(self, x: Tensor) -> Tensor:
        """The same, a position at a time: what is kept between two of them does not grow."""
        x, state, out = self.enter(x), self.s4.initial_state(len(x)), []
        for token in x.unbind(dim=1):
            y, state = self.s4.step(token, state)
            out.append(self.leave(token + y)[..., 0])
        return torch.stack(out, dim=1)


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences [count,T,2] and the number [count] at the first position of channel 1; channel 0 is noise."""
    x = torch.zeros(count, LENGTH, 2)
    x[..., 0] = torch.randn(count, LENGTH, generator=generator)
    x[:, 0, 1] = torch.randn(count, generator=generator)
    return x, x[:, 0, 1]


def main() -> float:
    """Train, read, and return the mean squared error; the numbers have variance 1, which a guess of 0 would leave."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(1, STEPS + 1):
        x, first = draw(BATCH, generator)
        loss = (model(x)[:, -1] - first).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 30 == 0:
            print(f"step {step}: {loss.item():.3f} of the variance is left")

    x, first = draw(200, generator)
    with torch.no_grad():
        whole = model(x)
    torch.testing.assert_close(model.read(x), whole, atol=1e-4, rtol=1e-3)
    left = (whole[:, -1] - first).square().mean().item()
    print(f"on new sequences {left:.3f}; the recurrence gives what the convolution gives")
    return left


if __name__ == "__main__":
    main()
