"""The feed-forward block of a modulator or connector."""

import torch.nn.functional as F
from torch import Tensor, nn

from .linear import product


class FeedForward(nn.Module):
    """LayerNorm -> Linear -> GELU -> dropout -> Linear -> dropout, without the residual."""

    def __init__(self, width: int, multiplier: int, dropout: float, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, multiplier * width)
        self.down = nn.Linear(multiplier * width, width)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        for module in (self.norm, self.up, self.down):
            module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return self.after_norm(self.norm(x))

    def after_norm(self, normed: Tensor) -> Tensor:
        """The block when its LayerNorm has been taken already, by the kernel that made its input."""
        return self.dropout(product(self.down, self.dropout(F.gelu(product(self.up, normed)))))
