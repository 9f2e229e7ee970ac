"""The cross-modal modulator as its equations say it, token by token: what the grid-side table is compared with."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cmm import CMMConfig, CrossModalModulator

SIZES = {"B": 8, "T": 512, "G": 5, "K": 4, "D": 1024, "D_v": 768, "H": 4, "D_h": 32}
PARTS = ("film part", "whole layer")


class _Through(nn.Module):
    """In the place of the SSM and of the FFN: what comes in goes out."""

    def __init__(self, norm: nn.Module | None = None):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x

    after_norm = forward


def make_layer(part: str, sizes: dict[str, int] = SIZES, dtype: torch.dtype = torch.float32) -> CrossModalModulator:
    """A modulator, or only its film part: the same layer with an SSM and an FFN that do nothing."""
    config = CMMConfig(
        text_width=sizes["D"],
        grid_width=sizes["D_v"],
        heads=sizes["H"],
        head_dim=sizes["D_h"],
        top_k=sizes["K"],
        dropout=0.0,
        grid_positions=False,
    )
    layer = CrossModalModulator(config).to(dtype)
    if part == "film part":
        layer.ssm, layer.ffn = _Through(), _Through(layer.ffn.norm)
    return layer


def by_equations(layer: CrossModalModulator) -> Callable[[Tensor, Tensor], Tensor]:
    """The layer's function of (text, grids), written from firebolt-vl.md section 2: the context c of each token, then
    W_f c + b_f of each token."""
    config = layer.config

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (config.heads, config.head_dim))

    def film(x: Tensor, linear: nn.Linear, c: Tensor) -> Tensor:
        gamma, beta = linear(c).chunk(2, -1)
        return x * (1 + layer.gate * gamma) + layer.gate * beta

    def forward(text: Tensor, grids: Tensor) -> Tensor:
        q, k, v = heads(layer.q_proj(text)), heads(layer.k_proj(grids)), layer.v_proj(grids)
        s = torch.einsum("bthd,bghd->bhtg", q, k) / math.sqrt(config.head_dim)
        kept = s.argsort(dim=-1, descending=True, stable=True)[..., : config.top_k]
        a = s.masked_fill(torch.ones_like(s, dtype=torch.bool).scatter(-1, kept, False), -math.inf).softmax(-1)
        c = a.mean(1) @ v
        y = layer.ssm(film(layer.norm_in(text), layer.film_in, c), None)
        r = text + film(y, layer.film_out, c)
        norm = layer.ffn.norm
        normed = F.layer_norm(r, r.shape[-1:], norm.weight, norm.bias, norm.eps)
        return layer.norm_out(r + layer.ffn.after_norm(normed))

    return forward
