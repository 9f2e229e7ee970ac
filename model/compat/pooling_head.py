"""SigLIP's pooling head: one learned query looks at all patches."""

from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from ..cpu.pooling_head import attend_row_by_row
from .versions import replace_modules


class RowAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention of a pooling head, whose patches are projected row by row (`attend_row_by_row`)."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor | None]:
        """Return the attention [n,Q,D] of queries [n,Q,D] to patches [n,L,D], keys and values alike, and no weights."""
        if args or kwargs or key is not value or self.dropout > 0 or self.in_proj_bias is None or not self.batch_first:
            return super().forward(query, key, value, *args, **kwargs)
        return attend_row_by_row(self, query, value), None


class OneQueryPooling(SiglipMultiheadAttentionPoolingHead):
    """SiglipMultiheadAttentionPoolingHead without rows of its query that are not read.

    z + MLP(LN(z)), z the attention of the learned query to the patches [n,L,D].
    """

    def forward(self, hidden_state: Tensor) -> Tensor:
        probe = self.probe.expand(len(hidden_state), -1, -1)
        seen = self.attention(probe, hidden_state, hidden_state)[0][:, 0]
        return seen + self.mlp(self.layernorm(seen))


QUERY = ("self", "query", "key", "value")
MASKS = ("key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


def pool_by_one_query(vision_tower: nn.Module) -> None:
    """Let a SiglipVisionModel's pooling head project its patches row by row; its parameters and names stay."""
    replace_modules(vision_tower, OneQueryPooling, ("self", "hidden_state"))
    replace_modules(vision_tower, RowAttention, (*QUERY, *MASKS))
