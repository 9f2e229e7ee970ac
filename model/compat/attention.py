"""LFM2's attention: joined products of queries, keys and values, and sequences packed into one row."""

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention, apply_rotary_pos_emb

from ...cmm.sequences import Sequences, by_sequence
from ..cpu.joined import whole_of
from .versions import CACHE, CACHE_NAMES, replace_modules

# All that may be said to it where the products are joined; anything else is for transformers to understand.
TOLD = {"position_embeddings", "attention_mask", "position_ids", "use_cache", *CACHE_NAMES}


class SequencewiseAttention(Lfm2Attention):
    """Lfm2Attention, which takes joined queries, keys and values (`cpu.joined`), and packed `sequences`.

    It attends to each of the sequences by itself: T_1^2 + T_2^2 + ... products, where a mask for the whole row would
    take (T_1 + T_2 + ...)^2. Else it is that of transformers.
    """

    same_input = ("q_proj", "k_proj", "v_proj")

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        sequences: Sequences | None = kwargs.get("sequences")
        whole = whole_of(self, self.same_input)
        joined = whole is not None and kwargs.keys() <= TOLD and self.config._attn_implementation == "sdpa"
        if args or (sequences is None and not joined):
            return super().forward(hidden_states, *args, **kwargs)
        q, k, v = self._projected(hidden_states, whole, kwargs["position_embeddings"])
        if sequences is not None:
            attended = by_sequence(sequences, self._attend, (q.transpose(1, 2), k.transpose(1, 2), v), ())
            return self.out_proj(attended.flatten(2)), None
        v = v.transpose(1, 2)
        cache = next((kwargs[name] for name in CACHE_NAMES if kwargs.get(name) is not None), None)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        mask = kwargs.get("attention_mask")
        attended = sdpa_attention_forward(self, q, k, v, mask, dropout=0.0, scaling=self.scaling)[0]
        return self.out_proj(attended.flatten(2)), None

    def _projected(self, x: Tensor, whole: nn.Module | None, positions: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Queries and keys [B,H,T,D_h], normed and turned, and values [B,T,H',D_h] of x [B,T,D]."""
        parts = (self.q_proj, self.k_proj, self.v_proj)
        if whole is None:
            products = [part(x) for part in parts]
        else:
            products = whole(x).split([part.out_features for part in parts], dim=-1)
        q, k, v = (y.view(*x.shape[:-1], -1, self.head_dim) for y in products)
        q, k = self.q_layernorm(q).transpose(1, 2), self.k_layernorm(k).transpose(1, 2)
        return *apply_rotary_pos_emb(q, k, *positions), v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [1,T,H,D_h], k and v [1,T,H',D_h] of one sequence -> [1,T,H,D_h], each position seeing those before it."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return sdpa_attention_forward(self, q, k, v, None, dropout=0.0, scaling=self.scaling)[0]


def attend_by_sequence(decoder: nn.Module) -> None:
    """Let attention of an Lfm2Model be `SequencewiseAttention`; parameters and names stay as they are."""
    parameters = ("self", "hidden_states", "position_embeddings", "attention_mask", CACHE, "kwargs")
    replace_modules(decoder, SequencewiseAttention, parameters)
