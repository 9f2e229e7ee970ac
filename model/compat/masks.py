"""The masks of LFM2's layers, made outside of it."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from .versions import CACHE


def layer_masks(
    config: PreTrainedConfig,
    embeddings: Tensor,
    attention_mask: Tensor | None,
    conv_mask: Tensor | None,
    position_ids: Tensor,
    cache: Cache | None,
) -> dict[str, Tensor | None]:
    """Return what an Lfm2Model takes in the place of a mask [B, past + T], by the kind of its layers.

    embeddings [B,T,D]; attention_mask [B, past + T], of which the causal mask of attention is made; conv_mask [B,T],
    True = keep, for the short convolutions: None where all are kept.
    """
    named: dict[str, Any] = {CACHE: cache}
    attention = create_causal_mask(
        config=config,
        inputs_embeds=embeddings,
        attention_mask=attention_mask,
        position_ids=position_ids,
        **named,
    )
    return {"full_attention": attention, "conv": conv_mask}
