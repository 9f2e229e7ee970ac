"""LFM2's attention, for sequences packed into one row."""

from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.lfm2.modeling_lfm2 import Lfm2Attention, apply_rotary_pos_emb

from ...cmm.sequences import Sequences, by_sequence
from .versions import CACHE, replace_modules


class SequencewiseAttention(Lfm2Attention):
    """Lfm2Attention, which attends to each of the packed `sequences` by itself: T_1^2 + T_2^2 + ... products.

    A mask for the whole row would take (T_1 + T_2 + ...)^2. Told no sequences it is that of transformers.
    """

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        sequences: Sequences | None = kwargs.get("sequences")
        if args or sequences is None:
            return super().forward(hidden_states, *args, **kwargs)
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        q = self.q_layernorm(self.q_proj(hidden_states).view(heads)).transpose(1, 2)
        k = self.k_layernorm(self.k_proj(hidden_states).view(heads)).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"])
        v = self.v_proj(hidden_states).view(heads)
        attended = by_sequence(sequences, self._attend, (q.transpose(1, 2), k.transpose(1, 2), v), ())
        return self.out_proj(attended.flatten(2)), None

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [1,T,H,D_h], k and v [1,T,H',D_h] of one sequence -> [1,T,H,D_h], each position seeing those before it."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return sdpa_attention_forward(self, q, k, v, None, dropout=0.0, scaling=self.scaling)[0]


def attend_by_sequence(decoder: nn.Module) -> None:
    """Let attention of an Lfm2Model be `SequencewiseAttention`; parameters and names stay as they are."""
    parameters = ("self", "hidden_states", "position_embeddings", "attention_mask", CACHE, "kwargs")
    replace_modules(decoder, SequencewiseAttention, parameters)
