"""The cross-modal modulator: writes what each text token sees of an image into that token."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.symbolic import varies
from .block import SSMBlock
from .config import CMMConfig
from .connector import After, Connector, PlacedGrids, Whole
from .feed_forward import FeedForward
from .film import Films, ModulatorSide
from .inputs import without_masked
from .linear import is_plain, product, product_and_bias
from .precision import wide_dtype
from .query import QueryContext
from .sequences import Sequences
from .ssms import ssm_block
from .state import DecodeState

# In the names of a state's tensors: what belongs to the state-space model of the queries, and to the second layer.
QUERY, SECOND = "query.ssm", "second"


def uses_grid_table(width: int, grids: int, tokens: int | None = None) -> bool:
    """Tell whether FiLM is cheaper from a table of the grids than from each token's context: one function, two ways.

    From the table: 4 D^2 G once, then 4 D G a token. From the context: D G and 4 D^2 a token. So the table wins iff
    4 D (T - G) > 3 T G (docs/mathematics.md, 2.11). Measured on one core at D = 1024 both take the same time at T = 66
    for G = 64 and at T = 320 for G = 256, where the rule has 68 and 316. `tokens` None: the table is made once and T is
    unknown, a prompt and the tokens generated after it; there it wins iff G < D. Open numbers of an export count as few
    grids and many tokens.
    """
    if varies(grids):
        return True
    if tokens is not None and varies(tokens):
        tokens = None
    if tokens is None:
        return grids < width
    return 4 * width * (tokens - grids) > 3 * tokens * grids


class CrossModalModulator(Films, Connector[ModulatorSide]):
    """Text embeddings in, text embeddings of the same shape out, each having seen the grids and the tokens before it.

        q = X_t W_q   k = X_v W_k   v = X_v W_v                     X_v with positions if config.grid_positions
        w = mean over heads of top-k softmax(q.k / sqrt(D_h))       [B,T,G]
        c = w v                                                     [B,T,D_t]
        X_f = LN(X_t) (1 + alpha gamma) + alpha beta                [gamma, beta] = W_f c + b_f
        Y = SSM(X_f)
        R = X_t + Y (1 + alpha gamma') + alpha beta'                [gamma', beta'] = W_f' c + b_f'
        X_out = LN(R + FFN(R))                                      FFN = LN, Linear, GELU, Linear

    Causal in T and linear in it. Modes and masks are those of every `Connector`. A row whose grids are all masked has
    w = 0.

    With config.query "state" the text up to a token has a say in where it looks, through a state-space model of its
    own; with config.layers 2 another such layer reads the output; with config.start "identity" the output is the text
    until training moves g [D_t] from 0 (docs/mathematics.md, section 2d):

        q = (X_t + SSM_q(LN(X_t))) W_q
        X_out = second(first(X_t, X_v), X_v)                        w is the second's
        X_out = X_t + g LN(R + FFN(R))

    A layer may be built with or without `grid_positions`; without, `grid_boxes` and `grid_images` have no effect, and
    without `grid_times` the argument of that name has none.

    Source: Firebolt-VL (arXiv 2604.04579), section on the cross-modal modulator; Viper-F1 (arXiv 2511.11177).
    """

    side_class = ModulatorSide
    packs = True
    modulates = True

    def __init__(self, config: CMMConfig):
        super().__init__(config)
        width, correlation_width = config.text_width, config.heads * config.head_dim
        self.q_proj = nn.Linear(width, correlation_width, bias=False)
        self.k_proj = nn.Linear(config.grid_width, correlation_width, bias=False)
        self.v_proj = nn.Linear(config.grid_width, width, bias=False)
        self.norm_in = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.film_in = nn.Linear(width, 2 * width)
        self.ssm = ssm_block(config, width)
        self.film_out = nn.Linear(width, 2 * width)
        self.gate = nn.Parameter(torch.full((1,), 0.5))
        self.ffn = FeedForward(width, config.ffn_multiplier, config.dropout, config.layer_norm_eps)
        self.norm_out = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.query = QueryContext(config) if config.query == "state" else None
        self.out_gate = nn.Parameter(torch.zeros(width)) if config.start == "identity" else None
        self.second = CrossModalModulator(replace(config, layers=1)) if config.layers > 1 else None

    def reset_parameters(self) -> None:
        """Initialise this layer and everything in it anew."""
        nn.init.constant_(self.gate, 0.5)
        if self.out_gate is not None:
            nn.init.zeros_(self.out_gate)
        super().reset_parameters()

    @property
    def dtype(self) -> torch.dtype:
        return self.gate.dtype

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

    def _side_of(self, seen: PlacedGrids, tokens: int | None) -> ModulatorSide:
        return self._side(seen, uses_grid_table(self.config.text_width, seen.x.shape[1], tokens))

    def _shared(self, side: ModulatorSide, times: int) -> ModulatorSide:
        """The side as it is where there is no table (`_film_by_layers`), else with repeated rows."""
        return side if side.table is None else side.repeated(times)

    def _added_side(self, seen: PlacedGrids, before: ModulatorSide) -> ModulatorSide:
        return self._side(seen, before.table is not None)

    def _side(self, seen: PlacedGrids, has_table: bool) -> ModulatorSide:
        x, mask = seen.x, seen.mask
        k = product(self.k_proj, x).unflatten(-1, (self.config.heads, self.config.head_dim))
        v = product(self.v_proj, x)
        if not has_table:
            return ModulatorSide(mask, k, v=v)
        tables, biases = zip(*(product_and_bias(film, v) for film in (self.film_in, self.film_out)))
        return ModulatorSide(mask, k, torch.cat(tables, -1), torch.cat(biases, -1))

    @wraps(Connector.encode_grids)
    def encode_grids(self, *grids: Any, **more: Any) -> DecodeState:  # pyright: ignore[reportIncompatibleMethodOverride]  # `wraps` hides that it takes the same
        state = super().encode_grids(*grids, **more)
        if self.second is None:
            return state
        return state.beside(self.second.encode_grids(*grids, **more).nest(SECOND))

    def add_grids(self, state: DecodeState, *grids: Any, **more: Any) -> DecodeState:
        """The state with more grids, as `Connector.add_grids` makes it, also of a second layer."""
        added = super().add_grids(state, *grids, **more)
        if self.second is None:
            return added
        return added.beside(self.second.add_grids(state.under(SECOND), *grids, **more).nest(SECOND))

    def _whole(self, given: Whole) -> tuple[Tensor, Tensor | None, ModulatorSide]:
        y, w, side = super()._whole(given)
        if self.second is not None:
            grids, mask, boxes, images, times = given.grids
            more = {"grid_images": images, "grid_times": times, "cu_seqlens": given.sequences}
            more["shared"] = given.times > 1
            y, w = self.second(y, grids, given.text_mask, mask, boxes, return_weights=True, **more)
        return y, w, side

    def _piece(
        self, text: Tensor, text_mask: Tensor | None, before: DecodeState, history: int, return_weights: bool
    ) -> tuple:
        if self.second is None:
            return super()._piece(text, text_mask, before, history, return_weights)
        y, after = super()._piece(text, text_mask, before, history, False)
        options = {"text_mask": text_mask, "history": history, "return_weights": return_weights}
        y, later, *w = self.second.prefill(y, state=before.under(SECOND), **options)
        return y, after.beside(later.nest(SECOND)), *w

    def _token(self, token: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        y, after = super()._token(token, state)
        if self.second is None:
            return y, after
        y, later = self.second.step(y, state.under(SECOND))
        return y, after.beside(later.nest(SECOND))

    def _block(self, part: str) -> SSMBlock:
        if part == "ssm":
            return self.ssm
        assert self.query is not None  # the only other part that mixes
        return self.query.ssm

    def _mix(self, x: Tensor, mask: Tensor | None, part: str = "ssm", *, sequences: Sequences | None = None) -> Tensor:
        block = self._block(part)
        return block(x, mask) if sequences is None else block(x, cu_seqlens=sequences)

    def _mix_piece(
        self, x: Tensor, mask: Tensor | None, state: DecodeState, history: int, part: str = "ssm"
    ) -> tuple[Tensor, DecodeState]:
        seen = state.under(part)
        y, seen = self._block(part).prefill(x, mask, seen if seen.tensors else None, history=history)
        return y, state.merge(seen.nest(part))

    def _mix_token(self, x: Tensor, state: DecodeState, part: str = "ssm") -> tuple[Tensor, DecodeState]:
        seen = state.under(part)
        if not seen.tensors:
            seen = self._block(part).initial_state(x.shape[0], x.device)
        y, seen = self._block(part).step(x[:, 0], seen)
        return y.unsqueeze(1), state.merge(seen.nest(part))

    def _connect(
        self,
        text: Tensor,
        text_mask: Tensor | None,
        side: ModulatorSide,
        mix: Callable[..., tuple[Tensor, After]],
        sequences: Sequences | None = None,
    ) -> tuple[Tensor, Tensor, After]:
        text = without_masked(text, text_mask)
        asked, first = text, None
        if self.query is not None:
            context, first = mix(self.query.normed(text, text_mask), QUERY)
            asked = text + context
        q = product(self.q_proj, asked).unflatten(-1, (self.config.heads, self.config.head_dim))
        options = {
            "text_mask": text_mask,
            "renormalize": self.config.top_k_mode == "renormalize",
            "dropout_p": self.config.dropout if self.training else 0.0,
        }
        if side.table is None or not all(is_plain(norm, nn.LayerNorm) for norm in (self.norm_in, self.ffn.norm)):
            r, normed, w, seen = self._film_by_layers(text, q, side, options, mix, sequences)
        elif sequences is None and self._takes_short_way(text, text_mask, q, side):
            r, normed, w, seen = self._film_of_few_tokens(text, q, side, mix)
        else:
            r, normed, w, seen = self._film_from_table(text, q, side, options, mix, sequences)
        y = self._opened(text, self.norm_out(r + self.ffn.after_norm(normed)))
        if first is not None and seen is not None:  # neither of them is in whole sequences
            seen = seen.beside(first.under(QUERY).nest(QUERY))
        return without_masked(y, text_mask), w, seen

    def _opened(self, text: Tensor, written: Tensor) -> Tensor:
        """Put what is written in the place of the text, or add it as far as the gate is open; in its dtype."""
        if self.out_gate is None:
            return written.to(text.dtype)
        dtype = wide_dtype(text.dtype)
        return torch.addcmul(text.to(dtype), written.to(dtype), self.out_gate.to(dtype)).to(text.dtype)
