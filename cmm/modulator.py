"""The cross-modal modulator: writes what each text token sees of an image into that token."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import correlation_context, film_residual, grounded_film
from ..kernels.common.device import choose
from ..kernels.modulation.weights import INFINITY, largest_of_few_or_many, softmax_or_zero
from .config import CMMConfig
from .feed_forward import FeedForward
from .inputs import check_prefill, check_text, prepared_grids, token_as_text, without_masked
from .linear import Linear, without_bias
from .mamba import Mamba
from .positions import GridPositions
from .precision import wide_dtype
from .s4 import S4
from .s4d import S4D
from .state import DecodeState

# Tokens, of all rows, for which FiLM takes the way of fewest calls. Measured on one core at D = 1024, G = 5: the layer
# takes 4 % less time for 2 tokens, 2 % less for 32, and as much for 64.
FEW_TOKENS = 32


def uses_grid_table(width: int, grids: int, tokens: int | None = None) -> bool:
    """Whether FiLM is cheaper from a table of the grids than from each token's context; both are the same function.

    From the table: 4 D^2 G once, then 4 D G a token. From the context: D G and 4 D^2 a token. So the table wins iff
    4 D (T - G) > 3 T G (docs/mathematics.md, 2.11). Measured on one core at D = 1024 both take the same time at T = 66
    for G = 64 and at T = 320 for G = 256, where the rule has 68 and 316. `tokens` None: the table is made once and T is
    unknown, a prompt and the tokens generated after it; there it wins iff G < D.
    """
    if tokens is None:
        return grids < width
    return 4 * width * (tokens - grids) > 3 * tokens * grids


def _ssm(config: CMMConfig) -> nn.Module:
    if config.ssm == "s4":
        return S4(config.text_width, config.state_size, kernel_taps=config.kernel_taps)
    if config.ssm == "s4d":
        return S4D(config.text_width, config.state_size, dropout=config.dropout)
    return Mamba(config.text_width, config.state_size)


def _film(x: Tensor, film: Tensor, gate: Tensor) -> Tensor:
    """x (1 + gate gamma) + gate beta, [gamma, beta] = film, computed in float32 or wider."""
    dtype = wide_dtype(x.dtype)
    gamma, beta = film.to(dtype).chunk(2, dim=-1)
    return x.to(dtype) * (1 + gate.to(dtype) * gamma) + gate.to(dtype) * beta


def _layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm` in the dtype of x, which may be wider than its parameters'."""
    return F.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


class CrossModalModulator(nn.Module):
    """Text embeddings in, text embeddings of the same shape out, each having seen the grids and the tokens before it.

        q = X_t W_q   k = X_v W_k   v = X_v W_v                     X_v with positions if config.grid_positions
        w = mean over heads of top-k softmax(q.k / sqrt(D_h))       [B,T,G]
        c = w v                                                     [B,T,D_t]
        X_f = LN(X_t) (1 + alpha gamma) + alpha beta                [gamma, beta] = W_f c + b_f
        Y = SSM(X_f)
        R = X_t + Y (1 + alpha gamma') + alpha beta'                [gamma', beta'] = W_f' c + b_f'
        X_out = LN(R + FFN(R))                                      FFN = LN, Linear, GELU, Linear

    Causal in T and linear in it. `forward`, `prefill` and `step` are one function in three modes: `prefill` in any
    number of pieces followed by `step`s gives what `forward` gives on the whole.

    Masks are bool, True = keep. A masked text position does not exist: no token sees it, and its output is 0. A row
    whose grids are all masked has w = 0. Nothing under a mask is read.

    A layer may be built with or without `grid_positions`; without, `grid_boxes` and `grid_images` have no effect.

    Source: Firebolt-VL (arXiv 2604.04579), section on the cross-modal modulator; Viper-F1 (arXiv 2511.11177).
    """

    inserts_grids = False

    def __init__(self, config: CMMConfig):
        super().__init__()
        self.config = config
        width, correlation_width = config.text_width, config.heads * config.head_dim
        self.positions = GridPositions(config.grid_width) if config.grid_positions else None
        self.q_proj = Linear(width, correlation_width, bias=False)
        self.k_proj = Linear(config.grid_width, correlation_width, bias=False)
        self.v_proj = Linear(config.grid_width, width, bias=False)
        self.norm_in = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.film_in = Linear(width, 2 * width)
        self.ssm = _ssm(config)
        self.film_out = Linear(width, 2 * width)
        self.gate = nn.Parameter(torch.full((1,), 0.5))
        self.ffn = FeedForward(width, config.ffn_multiplier, config.dropout, config.layer_norm_eps)
        self.norm_out = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def reset_parameters(self) -> None:
        """Initialise this layer and everything in it anew."""
        nn.init.constant_(self.gate, 0.5)
        for child in self.children():
            child.reset_parameters()

    @classmethod
    def from_original(
        cls,
        state_dict: dict[str, Tensor],
        *,
        heads: int,
        head_dim: int,
        top_k: int | None,
        ssm: str,
        kernel_taps: int | None = None,
    ) -> "CrossModalModulator":
        """The layer of a checkpoint of the original (`TokenGridCorrFiLMS4`), in the dtype of its state dict.

        `state_dict` has the original's names, without a prefix. What it does not say is given: `heads`, `head_dim`,
        `top_k` (0 or None: all), `ssm` ("s4" or "s4d"), and `kernel_taps`: 512 is the original's truncation, None runs
        as long as the text (the same function up to 512 tokens). Raises ValueError naming keys that are missing,
        unknown or of the wrong shape.
        """
        from .original import modulator_from_original

        return modulator_from_original(
            cls, state_dict, heads=heads, head_dim=head_dim, top_k=top_k, ssm=ssm, kernel_taps=kernel_taps
        )

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
        """Modulate whole sequences.

        Arguments:
            text: embeddings [B,T,D_t].
            grids: [B,G,D_v], any G.
            text_mask, grid_mask: [B,T] and [B,G] bool, True = keep.
            grid_boxes: [B,G,4], y0, x0, y1, x1 in 0..1 of the image. None: the global view and n x n tiles.
            grid_images: [B,G] integers, which image of the row a grid is of; None: all of image 0.
            return_weights: return w too.

        Returns: y [B,T,D_t] in the dtype of text, or (y, w [B,T,G]).
        """
        self._check_text(text, text_mask)
        side = self._grid_side(grids, grid_mask, grid_boxes, grid_images, text.shape[0], tokens=text.shape[1])
        y, w, _ = self._modulate(text, text_mask, side, lambda x_f: (self.ssm(x_f, text_mask), None))
        return (y, w) if return_weights else y

    def encode_grids(
        self,
        grids: Tensor,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        grid_images: Tensor | None = None,
    ) -> DecodeState:
        """The grid side of the layer, computed once per prompt: a state that has seen no token, for `prefill`.

        Its tensors: "grid.k" [B,G,H,D_h], "grid.mask" [B,G], and "grid.table" [B,G,4D_t] (both FiLMs of the values) or,
        where there are many grids (`uses_grid_table`), "grid.v" [B,G,D_t].
        """
        side = self._grid_side(grids, grid_mask, grid_boxes, grid_images)
        if side["mask"] is None:
            side["mask"] = torch.ones(grids.shape[:2], dtype=torch.bool, device=grids.device)
        length = torch.zeros(grids.shape[0], dtype=torch.int64, device=grids.device)
        return DecodeState(side, length).nest("grid")

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
        """Modulate the next T tokens of every row; arguments as in `forward`.

        Either `grids` start a sequence, or `state` (of `encode_grids`, `prefill` or `step`) continues one.
        `history` is how many of the last positions the new state can forget (`DecodeState.rollback`).

        Returns: (y [B,T,D_t], state), with return_weights (y, state, w).
        """
        self._check_text(text, text_mask)
        check_prefill(type(self).__name__, text, grids, state)
        if state is None:
            state = self.encode_grids(grids, grid_mask, grid_boxes, grid_images)
        seen = state.under("ssm")
        y, w, seen = self._modulate(
            text,
            text_mask,
            state.under("grid").tensors,
            lambda x_f: self.ssm.prefill(x_f, text_mask, seen if seen.tensors else None, history=history),
        )
        state = state.merge(seen.nest("ssm"))
        return (y, state, w) if return_weights else (y, state)

    def step(self, token: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """Modulate one token, [B,D_t] or [B,1,D_t], in time that does not depend on how many came before.

        Returns: (y of the shape of token, the next state); `state` itself is not changed.
        """
        text = token_as_text(type(self).__name__, token, self.config.text_width, self.gate.dtype, state)

        def ssm_step(x_f: Tensor) -> tuple[Tensor, DecodeState]:
            seen = state.under("ssm")
            if not seen.tensors:
                seen = self.ssm.initial_state(text.shape[0], text.device)
            y, seen = self.ssm.step(x_f[:, 0], seen)
            return y.unsqueeze(1), seen

        y, _, seen = self._modulate(text, None, state.under("grid").tensors, ssm_step)
        return y.view(token.shape), state.merge(seen.nest("ssm"))

    def _check_text(self, text: Tensor, text_mask: Tensor | None) -> None:
        check_text(type(self).__name__, text, text_mask, self.config.text_width, self.gate.dtype)

    def _grid_side(
        self,
        grids: Tensor,
        grid_mask: Tensor | None,
        grid_boxes: Tensor | None,
        grid_images: Tensor | None,
        batch: int | None = None,
        tokens: int | None = None,
    ) -> dict[str, Any]:
        """All that depends on the grids alone: k, the mask, and the FiLM table or the values.

        `batch` rows of text and `tokens` in each, if they are known.
        """
        x = prepared_grids(
            type(self).__name__,
            grids,
            grid_mask,
            grid_boxes,
            grid_images,
            batch=batch,
            width=self.config.grid_width,
            dtype=self.gate.dtype,
            positions=self.positions,
        )
        side = {"k": self.k_proj(x).unflatten(-1, (self.config.heads, self.config.head_dim)), "mask": grid_mask}
        v = self.v_proj(x)
        if uses_grid_table(self.config.text_width, grids.shape[1], tokens):
            side["table"] = torch.cat([without_bias(self.film_in, v), without_bias(self.film_out, v)], -1)
        else:
            side["v"] = v
        return side

    def _modulate(
        self, text: Tensor, text_mask: Tensor | None, side: dict[str, Any], ssm
    ) -> tuple[Tensor, Tensor, Any]:
        """The layer around its SSM in any of the three modes, `ssm(x_f) -> (y, its state)`. Returns y, w, the state."""
        text = without_masked(text, text_mask)
        q = self.q_proj(text).unflatten(-1, (self.config.heads, self.config.head_dim))
        options = {
            "grid_mask": side["mask"],
            "text_mask": text_mask,
            "renormalize": self.config.top_k_mode == "renormalize",
            "dropout_p": self.config.dropout if self.training else 0.0,
        }
        if "table" in side and self._takes_short_way(text, text_mask, q, side):
            r, normed, w, seen = self._film_of_few_tokens(text, q, side, ssm)
        elif "table" in side:
            r, normed, w, seen = self._film_from_table(text, q, side, options, ssm)
        else:
            r, normed, w, seen = self._film_from_context(text, q, side, options, ssm)
        y = self.norm_out(r + self.ffn.after_norm(normed)).to(text.dtype)
        return without_masked(y, text_mask), w, seen

    def _film_from_table(self, text, q, side, options, ssm):
        table_in, table_out = side["table"].chunk(2, dim=-1)
        x_f, w = grounded_film(
            text,
            q,
            side["k"],
            table_in,
            self.film_in.bias,
            self.gate,
            self.norm_in.weight,
            self.norm_in.bias,
            top_k=self.config.top_k,
            eps=self.norm_in.eps,
            **options,
        )
        y, seen = ssm(x_f)
        ffn_norm = self.ffn.norm
        r, normed = film_residual(
            y,
            text,
            w,
            table_out,
            self.film_out.bias,
            self.gate,
            ffn_norm.weight,
            ffn_norm.bias,
            eps=ffn_norm.eps,
        )
        return r, normed, w, seen

    def _takes_short_way(self, text: Tensor, text_mask: Tensor | None, q: Tensor, side: dict[str, Any]) -> bool:
        """Whether these are few tokens on a CPU, without gradients, where a call costs as much as its numbers."""
        drops = self.training and self.config.dropout > 0
        return (
            text.shape[0] * text.shape[1] <= FEW_TOKENS
            and text_mask is None
            and not (drops or torch.is_grad_enabled() or torch.is_autocast_enabled(text.device.type))
            and choose("grounded_film", text, q, side["table"]) == "pytorch"
        )

    def _film_of_few_tokens(self, text, q, side, ssm):
        """`_film_from_table` in fewer calls: the scales and shifts of both FiLMs are one product with the table."""
        dtype = wide_dtype(text.dtype)
        scores = (q.to(dtype) * (1 / math.sqrt(q.shape[-1]))).transpose(1, 2) @ side["k"].to(dtype).permute(0, 2, 3, 1)
        if side["mask"] is not None:
            scores = scores.masked_fill(~side["mask"][:, None, None], -INFINITY)  # [B,H,T,G]
        top_k = self.config.top_k
        selects = top_k and top_k < scores.shape[-1]
        if selects and self.config.top_k_mode == "renormalize":
            a = softmax_or_zero(scores.masked_fill_(~largest_of_few_or_many(scores, top_k), -INFINITY))
        elif selects:
            a = softmax_or_zero(scores).masked_fill_(~largest_of_few_or_many(scores, top_k), 0)
        else:
            a = softmax_or_zero(scores)
        w = a.mean(1)  # [B,T,G]

        bias = torch.cat([self.film_in.bias, self.film_out.bias]).to(dtype)
        film = torch.baddbmm(bias, w, side["table"].to(dtype)).mul_(self.gate.to(dtype))
        gamma_in, beta_in, gamma_out, beta_out = film.chunk(4, dim=-1)
        x = text.to(dtype)
        normed = _layer_norm(x, self.norm_in)
        y, seen = ssm(torch.addcmul(normed + beta_in, normed, gamma_in).to(text.dtype))
        y = y.to(dtype)
        r = torch.addcmul(x + beta_out + y, y, gamma_out)
        return r.to(text.dtype), _layer_norm(r, self.ffn.norm).to(text.dtype), w.to(q.dtype), seen

    def _film_from_context(self, text, q, side, options, ssm):
        c, w = correlation_context(q, side["k"], side["v"], self.config.top_k, **options)
        x_f = _film(self.norm_in(text), self.film_in(c), self.gate).to(q.dtype)
        y, seen = ssm(without_masked(x_f, options["text_mask"]))
        r = text + _film(y, self.film_out(c), self.gate).to(text.dtype)
        return r, self.ffn.norm(r), w, seen
