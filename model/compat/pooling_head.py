"""SigLIP's pooling head: one learned query looks at all patches."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from ...kernels.linear import linear
from .versions import replace_modules


class OneQueryPooling(SiglipMultiheadAttentionPoolingHead):
    """SiglipMultiheadAttentionPoolingHead, whose query is projected once for all images, and patches row by row.

        z = W_o Attention(W_q p + b_q, X W_k^T + b_k, X W_v^T + b_v) + b_o        z + MLP(LN(z))

    `nn.MultiheadAttention`, which transformers calls, turns patches [n,L,D] into [L,n,D] and copies the weights of
    keys and values for each of the L rows: with four tiles of 64 patches that is a sixth of a bfloat16 answer's time to
    the first token, and this a hundredth of it.
    """

    def forward(self, hidden_state: Tensor) -> Tensor:
        attention = self.attention
        width, heads = attention.embed_dim, attention.num_heads
        of_query, of_patches = attention.in_proj_weight.split([width, 2 * width])
        query_bias, patch_bias = attention.in_proj_bias.split([width, 2 * width])
        query = linear(self.probe, of_query, query_bias).expand(len(hidden_state), -1, -1)
        key, value = linear(hidden_state, of_patches, patch_bias).chunk(2, dim=-1)
        query, key, value = (rows.unflatten(-1, (heads, -1)).transpose(1, 2) for rows in (query, key, value))
        seen = F.scaled_dot_product_attention(query, key, value)[..., 0, :].flatten(1)  # [n,D]
        out = attention.out_proj
        # An adapter (peft) around it adds to what its weights give.
        seen = linear(seen, out.weight, out.bias) if isinstance(out, nn.Linear) else out(seen)
        return seen + self.mlp(self.layernorm(seen))


def pool_by_one_query(vision_tower: nn.Module) -> None:
    """Let the pooling head of a SiglipVisionModel compute so; its parameters and names stay as they are."""
    replace_modules(vision_tower, OneQueryPooling, ("self", "hidden_state"))
