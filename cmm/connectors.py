"""The usual ways to show a decoder an image, at the modulator's interface, to compare it with."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.modulation.weights import INFINITY, softmax_or_zero
from .config import CMMConfig
from .connector import After, Connector, GridSide, PlacedGrids
from .feed_forward import FeedForward
from .inputs import without_masked
from .inserting import Inserting, WaitingGrids
from .linear import product
from .precision import wide_dtype
from .sequences import Sequences, by_sequence


@dataclass
class KeysAndValues(GridSide):
    """Keys and values of the grids, `k` and `v` [B,G,H,D_h]."""

    k: Tensor
    v: Tensor


class CrossAttend(Connector[KeysAndValues]):
    """Text tokens attend to the grids, as in a Q-Former: pre-LN cross-attention, residual, FFN.

        h = X_t + W_o concat_heads(softmax(q.k / sqrt(D_h)) v)      q = LN(X_t) W_q,  k = X_v W_k,  v = X_v W_v
        X_out = h + FFN(h)

    Pointwise in time, hence causal, and without memory of other tokens; its weights are the mean over heads of the
    attention. `config.top_k`, `ssm` and what belongs to it have no effect. A row whose grids are all masked attends to
    nothing.

    Source: BLIP-2 (arXiv 2301.12597), section 3.1, with text tokens in the place of learned queries.
    """

    side_class = KeysAndValues
    packs = True

    def __init__(self, config: CMMConfig):
        super().__init__(config)
        width, attention_width = config.text_width, config.heads * config.head_dim
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q_proj = nn.Linear(width, attention_width)
        self.k_proj = nn.Linear(config.grid_width, attention_width)
        self.v_proj = nn.Linear(config.grid_width, attention_width)
        self.o_proj = nn.Linear(attention_width, width)
        self.ffn = FeedForward(width, config.ffn_multiplier, config.dropout, config.layer_norm_eps)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    def _side_of(self, seen: PlacedGrids, tokens: int | None) -> KeysAndValues:
        return KeysAndValues(
            seen.mask, self._heads(product(self.k_proj, seen.x)), self._heads(product(self.v_proj, seen.x))
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.heads, self.config.head_dim))

    def _connect(
        self,
        text: Tensor,
        text_mask: Tensor | None,
        side: KeysAndValues,
        mix: Callable[[Tensor], tuple[Tensor, After]],
        sequences: Sequences | None = None,
    ) -> tuple[Tensor, Tensor, After]:
        text = without_masked(text, text_mask)
        q = self._heads(product(self.q_proj, self.norm(text)))
        attended, w = by_sequence(sequences, self._attend, (q,), (side.k, side.v, side.mask))
        h = text + product(self.o_proj, attended.flatten(-2))
        y, after = mix((h + self.ffn(h)).to(text.dtype))
        return without_masked(y, text_mask), without_masked(w, text_mask), after

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """q [B,T,H,D_h], k and v [B,G,H,D_h], mask [B,G] -> (attended [B,T,H,D_h], weights [B,T,G])."""
        scores = torch.einsum("bthd,bghd->bhtg", q, k).to(wide_dtype(q.dtype)) / math.sqrt(self.config.head_dim)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -INFINITY)
        a = softmax_or_zero(scores).to(q.dtype)
        attended = torch.einsum("bhtg,bghd->bthd", F.dropout(a, self.config.dropout, self.training), v)
        return attended, a.mean(1)


class Prepend(Inserting[WaitingGrids]):
    """Grids, projected to the text's width, stand as tokens in front of the text, as in LLaVA.

        [W_2 GELU(W_1 X_v + b_1) + b_2 ; X_t]                       [B,G+T,D_t]

    The grids come in their order, zero where masked; M = G. Of `config` the widths, `grid_positions` and no other field
    have an effect.

    Source: LLaVA 1.5 (arXiv 2310.03744), section 3.2.
    """

    side_class = WaitingGrids

    def __init__(self, config: CMMConfig):
        super().__init__(config)
        self.up = nn.Linear(config.grid_width, config.text_width)
        self.down = nn.Linear(config.text_width, config.text_width)

    @property
    def dtype(self) -> torch.dtype:
        return self.down.bias.dtype

    def inserted_mask(self, grid_mask: Tensor, grid_images: Tensor | None = None) -> Tensor:
        return grid_mask

    def _side_of(self, seen: PlacedGrids, tokens: int | None) -> WaitingGrids:
        embeddings = product(self.down, F.gelu(product(self.up, seen.x)))
        return WaitingGrids(seen.mask, without_masked(embeddings, seen.mask))
