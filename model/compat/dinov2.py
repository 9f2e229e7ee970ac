"""The insides of transformers' DINOv2 layers, which a query goes through beside the patches."""

from collections.abc import Sequence
from typing import Any, cast

import transformers
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention, Dinov2Layer, eager_attention_forward

from .versions import TESTED

PARTS = ("norm1", "attention", "layer_scale1", "drop_path", "norm2", "mlp", "layer_scale2")
ATTENTION_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "num_attention_heads", "head_dim", "scaling")


def layers_of(dino: nn.Module) -> Sequence[Dinov2Layer]:
    """Return the layers of a Dinov2Model, whose attributes nn.Module does not tell."""
    return cast(Any, dino).encoder.layer


def check_layers(layers: Sequence[nn.Module]) -> None:
    """Raise RuntimeError where DINOv2's layers are made of other parts than those that a query goes through."""
    for layer in layers:
        missing = [name for name in PARTS if not hasattr(layer, name)]
        missing += [name for name in ATTENTION_PARTS if not missing and not hasattr(layer.attention, name)]
        if missing:
            raise RuntimeError(
                f"transformers {transformers.__version__}: its DINOv2 layers have no {', '.join(missing)}; install a "
                f"version that firebolt-vl was tested with ({', '.join(TESTED)})"
            )


def heads(rows: Tensor, attention: Dinov2Attention) -> Tensor:
    """Split rows into heads: [F,N,D] -> [F,H,N,D_h]."""
    return rows.unflatten(-1, (attention.num_attention_heads, attention.head_dim)).transpose(1, 2)


def attend(attention: Dinov2Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to all keys by the implementation that the configuration names: [F,H,n,D_h] -> [F,n,D]."""
    function = ALL_ATTENTION_FUNCTIONS.get_interface(
        cast(str, attention.config._attn_implementation), eager_attention_forward
    )
    dropout = attention.attention_dropout if attention.training else 0.0
    attended, _ = function(attention, query, key, value, None, dropout=dropout, scaling=attention.scaling)
    return attended.flatten(-2)
