"""Self-attention in the place of a state-space model, as checkpoints of the original have it."""

import torch.nn.functional as F
from torch import Tensor, nn

from .inputs import without_masked
from .linear import product


class SelfAttention(nn.Module):
    """h = x + Attention(LN(x));  y = h + FFN(LN(h)): one LayerNorm serves both. Not causal.

    Attention: `heads` heads, W_o concat softmax(q.k / sqrt(D / heads)) v      FFN: Linear, GELU, dropout, Linear
    """

    def __init__(self, width: int, heads: int, multiplier: int, dropout: float, eps: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, multiplier * width)
        self.down = nn.Linear(multiplier * width, width)

    def reset_parameters(self) -> None:
        for module in (self.norm, self.qkv, self.out, self.up, self.down):
            module.reset_parameters()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B,K,D], mask [B,K] bool -> y [B,K,D], zero where masked."""
        parts = product(self.qkv, self.norm(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = None
        if mask is not None:
            # A row without any token sees all: its output is zeroed, and would else be NaN on the way there.
            seen = (mask | ~mask.any(-1, keepdim=True))[:, None, None]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, dropout_p=self.dropout if self.training else 0.0
        )
        h = x + self._dropped(product(self.out, attended.transpose(1, 2).flatten(-2)))
        hidden = self._dropped(F.gelu(product(self.up, self.norm(h))))
        return without_masked(h + self._dropped(product(self.down, hidden)), mask)

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)
