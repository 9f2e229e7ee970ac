"""Experts: small networks of which each patch takes the few that a router chooses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.modulation.weights import largest_of_few_or_many, top_k_softmax
from ..kernels.transforms import unobserved
from .linear import product
from .precision import wide_dtype


class Expert(nn.Module):
    """Linear -> GELU -> dropout -> Linear."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = dropout

    def reset_parameters(self) -> None:
        self.up.reset_parameters()
        self.down.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return product(self.down, F.dropout(F.gelu(product(self.up, x)), self.dropout, self.training))


class Experts(nn.Module):
    """A sum of the experts that a router gives weight to.

        r = W_r z + b_r      a = softmax of r over its `used` largest, 0 elsewhere      y = sum over e of a_e MLP_e(z)

    On a CPU each expert computes the tokens that chose it. Measured on one core (D 768, hidden 512, 2 of 4 experts),
    that takes 0.75 of the time of all experts on all tokens at 5 to 32 tokens, and 0.5 to 0.6 from 256 on. On other
    devices all compute all: which tokens an expert has is known there alone, and the host would wait for it.
    """

    def __init__(self, width: int, hidden: int, experts: int, used: int, dropout: float):
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(Expert(width, hidden, dropout) for _ in range(experts))
        self.used = used

    def reset_parameters(self) -> None:
        self.router.reset_parameters()
        for expert in self.experts:
            expert.reset_parameters()  # pyright: ignore[reportCallIssue]  # a ModuleList forgets its items' class

    def forward(self, x: Tensor, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B,K,D], kept [B,K] bool -> (y [B,K,D], the balance of the kept tokens, a number)."""
        logits = product(self.router, x).to(wide_dtype(x.dtype))
        a = top_k_softmax(logits, self.used, True, largest_of_few_or_many)
        chosen = a > 0
        if kept is not None:
            a = a.masked_fill(~kept[..., None], 0)
        y = self._gathered(x, a) if self._gathers(x) else self._all(x, a)
        return y, balance(logits, chosen, kept)

    def _gathers(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and unobserved()

    def _gathered(self, x: Tensor, a: Tensor) -> Tensor:
        tokens, weights = x.flatten(0, -2), a.flatten(0, -2)
        y = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            places = weights[:, number].nonzero().squeeze(-1)
            # Also of no token at all, so that each parameter has a gradient in every process.
            made = weights[places, number, None].to(x.dtype) * expert(tokens[places])
            y = y.index_add(0, places, made.to(x.dtype))
        return y.view(x.shape)

    def _all(self, x: Tensor, a: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            y = y + a[..., number, None].to(x.dtype) * expert(x)
        return y


def balance(logits: Tensor, chosen: Tensor, kept: Tensor | None) -> Tensor:
    """E sum over e of f_e p_e: f_e the share of tokens that chose expert e, p_e the mean of its softmax over all.

    logits, chosen [...,E], kept [...]. `used` where tokens are spread evenly, up to E where all choose alike; 0 without
    any token. Source: Switch Transformer (arXiv 2101.03961), equation 4.
    """
    p = logits.softmax(-1)
    if kept is None:
        share, mean = chosen.to(p.dtype).flatten(0, -2).mean(0), p.flatten(0, -2).mean(0)
    else:
        count = kept.sum().clamp(min=1)
        share, mean = ((x.to(p.dtype) * kept[..., None]).flatten(0, -2).sum(0) / count for x in (chosen, p))
    return logits.shape[-1] * (share * mean).sum()
