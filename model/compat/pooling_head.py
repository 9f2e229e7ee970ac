"""SigLIP's pooling head: one learned query looks at all patches."""

from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from ..cpu.pooling_head import attend_by_one_query
from .versions import replace_modules


class OneQueryPooling(SiglipMultiheadAttentionPoolingHead):
    """SiglipMultiheadAttentionPoolingHead, whose query is projected once for all images (`attend_by_one_query`).

    z + MLP(LN(z)), z the attention of the learned query to the patches [n,L,D].
    """

    def forward(self, hidden_state: Tensor) -> Tensor:
        seen = attend_by_one_query(self.attention, self.probe, hidden_state)
        return seen + self.mlp(self.layernorm(seen))


def pool_by_one_query(vision_tower: nn.Module) -> None:
    """Let the pooling head of a SiglipVisionModel project its query once; its parameters and names stay as they are."""
    replace_modules(vision_tower, OneQueryPooling, ("self", "hidden_state"))
