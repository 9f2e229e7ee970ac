"""The usual ways to show a decoder an image, at the modulator's interface, to compare it with."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.modulation.weights import INFINITY, softmax_or_zero
from .config import CMMConfig
from .feed_forward import FeedForward
from .inputs import check_prefill, check_text, prepared_grids, token_as_text, without_masked
from .linear import Linear
from .positions import GridPositions
from .precision import wide_dtype
from .state import DecodeState


def _reset_children(module: nn.Module) -> None:
    for child in module.children():
        child.reset_parameters()


def _unseen(side: dict[str, Tensor]) -> DecodeState:
    """A state with this grid side that has seen no token."""
    mask = side["mask"]
    return DecodeState(side, torch.zeros(mask.shape[0], dtype=torch.int64, device=mask.device)).nest("grid")


def _advanced(state: DecodeState, text: Tensor, text_mask: Tensor | None, history: int) -> DecodeState:
    """The state after the positions of text [B,T,D], whose last `history` it can forget: only lengths change."""
    if history < 0:
        raise ValueError(f"history: a count of positions >= 0 wanted, {history} found")
    batch, T = text.shape[:2]
    kept = torch.ones(batch, T, dtype=torch.bool, device=text.device) if text_mask is None else text_mask
    length = state.length + kept.sum(1)
    if not min(history, T):
        return DecodeState(state.tensors, length)
    before = length[:, None] - kept.flip(1).cumsum(1)[:, :history]  # [B, h], the latest position first
    return DecodeState(state.tensors, length, {"length": before})


def _or_ones(mask: Tensor | None, grids: Tensor) -> Tensor:
    return torch.ones(grids.shape[:2], dtype=torch.bool, device=grids.device) if mask is None else mask


class CrossAttend(nn.Module):
    """Text tokens attend to the grids, as in a Q-Former: pre-LN cross-attention, residual, FFN.

        h = X_t + W_o concat_heads(softmax(q.k / sqrt(D_h)) v)      q = LN(X_t) W_q,  k = X_v W_k,  v = X_v W_v
        X_out = h + FFN(h)

    Pointwise in time, hence causal, and without memory of other tokens. Masks, positions and the three modes are
    those of `CrossModalModulator`; `config.top_k`, `ssm` and what belongs to it have no effect. A row whose grids are
    all masked attends to nothing.

    Source: BLIP-2 (arXiv 2301.12597), section 3.1, with text tokens in the place of learned queries.
    """

    inserts_grids = False

    def __init__(self, config: CMMConfig):
        super().__init__()
        self.config = config
        width, attention_width = config.text_width, config.heads * config.head_dim
        self.positions = GridPositions(config.grid_width) if config.grid_positions else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q_proj = Linear(width, attention_width)
        self.k_proj = Linear(config.grid_width, attention_width)
        self.v_proj = Linear(config.grid_width, attention_width)
        self.o_proj = Linear(attention_width, width)
        self.ffn = FeedForward(width, config.ffn_multiplier, config.dropout, config.layer_norm_eps)

    def reset_parameters(self) -> None:
        """Initialise this layer and everything in it anew."""
        _reset_children(self)

    @property
    def dtype(self) -> torch.dtype:
        return self.q_proj.weight.dtype

    def forward(
        self,
        text: Tensor,
        grids: Tensor,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As `CrossModalModulator.forward`; the weights are the mean over heads of the attention."""
        self._check_text(text, text_mask)
        y, w = self._attend(text, text_mask, self._grid_side(grids, grid_mask, grid_boxes, grid_images, text.shape[0]))
        return (y, w) if return_weights else y

    def encode_grids(
        self,
        grids: Tensor,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        grid_images: Tensor | None = None,
    ) -> DecodeState:
        """Keys and values of the grids, once per prompt: "grid.k", "grid.v" [B,G,H,D_h] and "grid.mask" [B,G]."""
        return _unseen(self._grid_side(grids, grid_mask, grid_boxes, grid_images))

    def prefill(
        self,
        text: Tensor,
        grids: Tensor | None = None,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
        state: DecodeState | None = None,
        history: int = 0,
        return_weights: bool = False,
    ) -> tuple[Tensor, DecodeState] | tuple[Tensor, DecodeState, Tensor]:
        """As `CrossModalModulator.prefill`."""
        self._check_text(text, text_mask)
        check_prefill(type(self).__name__, text, grids, state)
        if state is None:
            state = self.encode_grids(grids, grid_mask, grid_boxes, grid_images)
        y, w = self._attend(text, text_mask, state.under("grid").tensors)
        state = _advanced(state, text, text_mask, history)
        return (y, state, w) if return_weights else (y, state)

    def step(self, token: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """As `CrossModalModulator.step`."""
        text = token_as_text(type(self).__name__, token, self.config.text_width, self.dtype, state)
        y, _ = self._attend(text, None, state.under("grid").tensors)
        return y.view(token.shape), _advanced(state, text, None, 0)

    def _check_text(self, text: Tensor, text_mask: Tensor | None) -> None:
        check_text(type(self).__name__, text, text_mask, self.config.text_width, self.dtype)

    def _grid_side(self, grids, grid_mask, grid_boxes, grid_images, batch=None) -> dict[str, Tensor]:
        x = prepared_grids(
            type(self).__name__,
            grids,
            grid_mask,
            grid_boxes,
            grid_images,
            batch=batch,
            width=self.config.grid_width,
            dtype=self.dtype,
            positions=self.positions,
        )
        return {"k": self._heads(self.k_proj(x)), "v": self._heads(self.v_proj(x)), "mask": _or_ones(grid_mask, grids)}

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.config.heads, self.config.head_dim))

    def _attend(self, text: Tensor, text_mask: Tensor | None, side: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        text = without_masked(text, text_mask)
        q = self._heads(self.q_proj(self.norm(text)))
        scores = torch.einsum("bthd,bghd->bhtg", q, side["k"]).to(wide_dtype(q.dtype))
        scores = (scores / math.sqrt(self.config.head_dim)).masked_fill(~side["mask"][:, None, None, :], -INFINITY)
        a = softmax_or_zero(scores).to(q.dtype)
        attended = torch.einsum("bhtg,bghd->bthd", F.dropout(a, self.config.dropout, self.training), side["v"])
        h = text + self.o_proj(attended.flatten(-2))
        y = (h + self.ffn(h)).to(text.dtype)
        return without_masked(y, text_mask), without_masked(a.mean(1), text_mask)


class Prepend(nn.Module):
    """Grids, projected to the text's width, stand as tokens in front of the text, as in LLaVA.

        [W_2 GELU(W_1 X_v + b_1) + b_2 ; X_t]                       [B,G+T,D_t]

    The grids come in their order, zero where masked. Masks, positions and the three modes are those of
    `CrossModalModulator`; of `config` the widths, `grid_positions` and no other field have an effect.

    Source: LLaVA 1.5 (arXiv 2310.03744), section 3.2.
    """

    inserts_grids = True

    def __init__(self, config: CMMConfig):
        super().__init__()
        self.config = config
        self.positions = GridPositions(config.grid_width) if config.grid_positions else None
        self.up = Linear(config.grid_width, config.text_width)
        self.down = Linear(config.text_width, config.text_width)

    def reset_parameters(self) -> None:
        """Initialise this layer and everything in it anew."""
        _reset_children(self)

    @property
    def dtype(self) -> torch.dtype:
        return self.up.weight.dtype

    def forward(
        self,
        text: Tensor,
        grids: Tensor,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
    ) -> Tensor:
        """Arguments as for `CrossModalModulator.forward`; returns [B,G+T,D_t], zero where text or grids are masked."""
        self._check_text(text, text_mask)
        side = self._grid_side(grids, grid_mask, grid_boxes, grid_images, text.shape[0])
        return torch.cat([side["embeddings"].to(text.dtype), without_masked(text, text_mask)], 1)

    def encode_grids(
        self,
        grids: Tensor,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        grid_images: Tensor | None = None,
    ) -> DecodeState:
        """The projected grids, once per prompt: "grid.embeddings" [B,G,D_t] and "grid.mask" [B,G]."""
        return _unseen(self._grid_side(grids, grid_mask, grid_boxes, grid_images))

    def prefill(
        self,
        text: Tensor,
        grids: Tensor | None = None,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
        state: DecodeState | None = None,
        history: int = 0,
    ) -> tuple[Tensor, DecodeState]:
        """[B,G+T,D_t] and the state where a sequence starts (`grids`, or a state of `encode_grids`), else [B,T,D_t].

        Once inserted, the grids are the decoder's to remember: "grid.embeddings" leaves the state.
        """
        self._check_text(text, text_mask)
        check_prefill(type(self).__name__, text, grids, state)
        if state is None:
            state = self.encode_grids(grids, grid_mask, grid_boxes, grid_images)
        y = without_masked(text, text_mask)
        waiting = {**state.tensors}
        inserted = waiting.pop("grid.embeddings", None)
        if inserted is not None:
            y = torch.cat([inserted.to(text.dtype), y], 1)
        return y, _advanced(DecodeState(waiting, state.length), text, text_mask, history)

    def step(self, token: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """The token as it is, and the state after it. Raises ValueError while the grids have not been inserted."""
        text = token_as_text(type(self).__name__, token, self.config.text_width, self.dtype, state)
        if "grid.embeddings" in state.tensors:
            raise ValueError("Prepend: state has grids that wait for the text they stand before; prefill it first")
        return token, _advanced(state, text, None, 0)

    def _check_text(self, text: Tensor, text_mask: Tensor | None) -> None:
        check_text(type(self).__name__, text, text_mask, self.config.text_width, self.dtype)

    def _grid_side(self, grids, grid_mask, grid_boxes, grid_images, batch=None) -> dict[str, Tensor]:
        x = prepared_grids(
            type(self).__name__,
            grids,
            grid_mask,
            grid_boxes,
            grid_images,
            batch=batch,
            width=self.config.grid_width,
            dtype=self.dtype,
            positions=self.positions,
        )
        embeddings = without_masked(self.down(F.gelu(self.up(x))), grid_mask)
        return {"embeddings": embeddings, "mask": _or_ones(grid_mask, grids)}
