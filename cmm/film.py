"""Both FiLMs of the modulator around its state-space model, in three ways that are one function."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import correlation_context, film_residual, grounded_film
from ..kernels.implementation import choose
from ..kernels.modulation.pytorch import film_of_few_tokens, weights_of_few_tokens
from ..kernels.modulation.selection import Selection
from ..kernels.symbolic import varies
from .block import SSMBlock
from .config import CMMConfig
from .connector import GridSide
from .feed_forward import FeedForward
from .inputs import without_masked
from .linear import product
from .precision import wide_dtype
from .sequences import by_sequence

# Tokens, of all rows, for which FiLM takes the way of fewest calls. Measured on one core at D = 1024, G = 5: the layer
# takes 4 % less time for 2 tokens, 2 % less for 32, and as much for 64.
FEW_TOKENS = 32


@dataclass
class ModulatorSide(GridSide):
    """Keys of the grids, and their values or the tables of both FiLMs.

    k       [B,G,H,D_h]
    table   [B,G,4D_t], W_f v and W_f' v side by side; None where there are many grids (`uses_grid_table`)
    bias    [B,4D_t], b_f and b_f' side by side, where there is a table
    v       [B,G,D_t] where there is none
    """

    of_all = ("bias",)

    k: Tensor
    table: Tensor | None = None
    bias: Tensor | None = None
    v: Tensor | None = None


class Films:
    """Part of the modulator that reads the grids' values into the text, before and after its state-space model.

    Each way is given text and queries q, the grids' side, `ssm`, by which tokens see those before them, and the packed
    sequences, if there are. It returns r [B,T,D_t], LN(r) for the feed-forward layer, w [B,T,G], and what `ssm`
    returned beside its output.
    """

    config: CMMConfig
    training: bool
    norm_in: nn.LayerNorm
    film_in: nn.Linear
    film_out: nn.Linear
    gate: nn.Parameter
    ssm: SSMBlock
    ffn: FeedForward

    def _film_from_table(self, text, q, side, options, ssm, sequences):
        table_in, table_out = side.table.chunk(2, dim=-1)
        bias_in, bias_out = side.bias[0].chunk(2, dim=-1)  # that of every row
        norm_in, ffn_norm = self.norm_in, self.ffn.norm

        def film_in(text, q, k, table, mask):
            return grounded_film(
                text,
                q,
                k,
                table,
                bias_in,
                self.gate,
                norm_in.weight,
                norm_in.bias,
                top_k=self.config.top_k,
                eps=norm_in.eps,
                grid_mask=mask,
                channels_first=self.ssm.channels_first and options["text_mask"] is None and sequences is None,
                **options,
            )

        def film_out(y, text, w, table):
            norm = (ffn_norm.weight, ffn_norm.bias)
            return film_residual(y, text, w, table, bias_out, self.gate, *norm, eps=ffn_norm.eps)

        x_f, w = by_sequence(sequences, film_in, (text, q), (side.k, table_in, side.mask))
        y, seen = ssm(x_f)
        r, normed = by_sequence(sequences, film_out, (y, text, w), (table_out,))
        return r, normed, w, seen

    def _takes_short_way(self, text: Tensor, text_mask: Tensor | None, q: Tensor, side: ModulatorSide) -> bool:
        """Tell whether these are few tokens on a CPU, without gradients, where calls cost as much as their numbers."""
        drops = self.training and self.config.dropout > 0
        return (
            text_mask is None
            and not (drops or torch.is_grad_enabled() or torch.is_autocast_enabled(text.device.type))
            and choose("grounded_film", text, q, side.table) == "pytorch"
            # Last, so that where kernels run no graph of torch.compile depends on it.
            and not varies(*text.shape)
            and text.shape[0] * text.shape[1] <= FEW_TOKENS
        )

    def _film_of_few_tokens(self, text, q, side, ssm):
        """`_film_from_table` in fewer calls: the scales and shifts of both FiLMs are one product with the table."""
        dtype = wide_dtype(text.dtype)
        selection = Selection(self.config.top_k, side.mask, renormalize=self.config.top_k_mode == "renormalize")
        w = weights_of_few_tokens(q, side.k, selection, dtype)
        film = film_of_few_tokens(w, side.table, side.bias[:, None], self.gate)
        gamma_in, beta_in, gamma_out, beta_out = film.chunk(4, dim=-1)
        x = text.to(dtype)
        normed = _layer_norm(x, self.norm_in)
        y, seen = ssm(torch.addcmul(normed + beta_in, normed, gamma_in).to(text.dtype))
        y = y.to(dtype)
        r = torch.addcmul(x + beta_out + y, y, gamma_out)
        return r.to(text.dtype), _layer_norm(r, self.ffn.norm).to(text.dtype), w.to(q.dtype), seen

    def _film_by_layers(self, text, q, side, options, ssm, sequences):
        """FiLM of each token, and norms by their modules: for many grids, and where the norms are not plain ones."""
        seen_of = side.v if side.table is None else side.table

        def context(q, k, v, mask):
            more, rows, shared = options, q.shape[:2], k.shape[0]
            if rows[0] != shared:  # the tokens of all rows that share grids look at them together
                q = q.reshape(shared, rows[0] // shared * rows[1], *q.shape[2:])
                kept = options["text_mask"]
                more = {**options, "text_mask": None if kept is None else kept.reshape(q.shape[:2])}
            c, w = correlation_context(q, k, v, self.config.top_k, grid_mask=mask, **more)
            return c.reshape(*rows, c.shape[-1]), w.reshape(*rows, w.shape[-1])

        c, w = by_sequence(sequences, context, (q,), (side.k, seen_of, side.mask))
        if side.table is None:
            film_in, film_out = product(self.film_in, c), product(self.film_out, c)
        else:
            bias = side.bias[:, None] if sequences is None else side.bias[sequences.index]
            film_in, film_out = (c + bias).chunk(2, dim=-1)
        x_f = _film(self.norm_in(text), film_in, self.gate).to(q.dtype)
        y, seen = ssm(without_masked(x_f, options["text_mask"]))
        r = text + _film(y, film_out, self.gate).to(text.dtype)
        return r, self.ffn.norm(r), w, seen


def _film(x: Tensor, film: Tensor, gate: Tensor) -> Tensor:
    """x (1 + gate gamma) + gate beta, [gamma, beta] = film, computed in float32 or wider."""
    dtype = wide_dtype(x.dtype)
    gamma, beta = film.to(dtype).chunk(2, dim=-1)
    return x.to(dtype) * (1 + gate.to(dtype) * gamma) + gate.to(dtype) * beta


def _layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """`norm` in the dtype of x, which may be wider than its parameters'."""
    return F.layer_norm(x, x.shape[-1:], norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
