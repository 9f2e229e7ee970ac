"""The modulator in a decoder of your own: trained for some steps, then decoded token by token.

The task has nothing but pictures to go by: five grids [D_v] each hold a digit, and the answer names them in order. The
decoder is a recurrent network of PyTorch; all that it knows of the grids comes through CrossModalModulator, which
stands between the embedding and the network and leaves the shape of its input alone.

    python examples/layer_in_a_decoder.py
"""

import torch
from torch import Tensor, nn

from firebolt_vl.cmm import CMMConfig, CrossModalModulator, DecodeState

DIGITS, GRIDS, START = 10, 5, 10
WIDTH, GRID_WIDTH = 64, 32
STEPS, BATCH = 200, 64


class Decoder(nn.Module):
    """Embedding, modulator, GRU, scores of the next digit."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(DIGITS + 1, WIDTH)
        self.modulator = CrossModalModulator(CMMConfig(text_width=WIDTH, grid_width=GRID_WIDTH, dropout=0.0))
        self.network = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, DIGITS)

    def forward(self, tokens: Tensor, grids: Tensor) -> Tensor:
        """Scores [B,T,10] of the digit after each of the tokens [B,T], which see the grids [B,G,D_v]."""
        hidden, _ = self.network(self.modulator(self.embedding(tokens), grids))
        return self.head(hidden)

    @torch.no_grad()
    def name(self, grids: Tensor) -> Tensor:
        """The answer [B,G] to grids [B,G,D_v]: the modulator and the network take one step for each token."""
        seen: DecodeState = self.modulator.encode_grids(grids)
        token = torch.full((len(grids),), START)
        hidden, answer = None, []
        for _ in range(GRIDS):
            x, seen = self.modulator.step(self.embedding(token), seen)
            x, hidden = self.network(x[:, None], hidden)
            token = self.head(x[:, 0]).argmax(dim=-1)
            answer.append(token)
        return torch.stack(answer, dim=1)


def draw(count: int, looks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits [count,G] and the grids [count,G,D_v] that show them: each digit's look, with noise."""
    digits = torch.randint(DIGITS, (count, GRIDS), generator=generator)
    return digits, looks[digits] + 0.1 * torch.randn(count, GRIDS, GRID_WIDTH, generator=generator)


def main() -> float:
    """Train, decode, and return the share of right digits."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(DIGITS, GRID_WIDTH, generator=generator)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, STEPS + 1):
        digits, grids = draw(BATCH, looks, generator)
        tokens = torch.cat([torch.full((BATCH, 1), START), digits[:, :-1]], dim=1)
        loss = nn.functional.cross_entropy(model(tokens, grids).flatten(0, 1), digits.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    model.eval()
    digits, grids = draw(200, looks, generator)
    answer = model.name(grids)
    right = (answer == digits).float().mean().item()
    print(f"shown {digits[0].tolist()}, named {answer[0].tolist()}; {100 * right:.0f} % of all digits are right")

    tokens = torch.cat([torch.full((200, 1), START), answer[:, :-1]], dim=1)
    with torch.no_grad():
        assert torch.equal(model(tokens, grids).argmax(dim=-1), answer)  # step by step it is the same function
    return right


if __name__ == "__main__":
    main()
