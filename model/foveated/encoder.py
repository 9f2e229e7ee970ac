"""The vision tower as something to look at: patches go through it once, queries as often as they like."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel

from ...cmm.linear import fast_without_gradients
from ..compat.dinov2 import Dinov2Attention, Dinov2Layer, attend, check_layers, heads, layers_of
from ..configuration_checks import backbone
from .configuration_foveated import FoveatedVLMConfig


@dataclass
class PatchMemory:
    """Result of the patch pass over F frames, N = 1 + patches rows each, the class token first, patches row by row.

    keys, values    for each layer that a query attends to, [F,H,N,D_h]: all layers, or the last one for a shallow query
    features        [F,N,D], the vision tower's output; None unless asked for
    """

    keys: list[Tensor]
    values: list[Tensor]
    features: Tensor | None = None

    def select(self, frames: Tensor) -> "PatchMemory":
        """Return the frames with these indices [n]."""
        return PatchMemory([keys[frames] for keys in self.keys], [values[frames] for values in self.values])

    def nothing(self, frames: int) -> "PatchMemory":
        """Return so many frames whose keys and values are all 0."""
        return PatchMemory(
            [keys.new_zeros(frames, *keys.shape[1:]) for keys in self.keys],
            [values.new_zeros(frames, *values.shape[1:]) for values in self.values],
        )

    @classmethod
    def join(cls, parts: list["PatchMemory"]) -> "PatchMemory":
        if len(parts) == 1:
            return parts[0]
        features = [part.features for part in parts if part.features is not None]
        return cls(
            [torch.cat(layer) for layer in zip(*(part.keys for part in parts))],
            [torch.cat(layer) for layer in zip(*(part.values for part in parts))],
            torch.cat(features) if features else None,
        )


class FoveatedEncoder(nn.Module):
    """DINOv2 with a query that goes through its layers beside the patches, by the layers' own weights.

    Patch pass, for each layer l with U = LN1(X): K_l = U W_k + b_k and V_l = U W_v + b_v are kept, and X goes on as in
    DINOv2. Patches never see a query.

    Deep query:      h_0 = W_in q
                     h <- h + ls1 (W_o Attention(W_q LN1(h) + b_q, K_l, V_l) + b_o)
                     h <- h + ls2 MLP(LN2(h))
                     z = W_out LN(h_L) + b_out
    Shallow query:   z = W_out LN(Attention(W_in q, K, V)) + b_out, with K, V by the last layer's LN1, W_k, W_v from the
                     tower's output (which its final norm has been through already)
    """

    def __init__(self, config: FoveatedVLMConfig):
        super().__init__()
        self.dino = AutoModel.from_config(config.vision_config)
        check_layers(self.layers)
        width = backbone(config.vision_config).hidden_size
        self.query_input_proj = nn.Linear(config.query_dim, width, bias=False)
        self.output_proj = nn.Linear(width, width)
        self.frame_block = config.frame_block
        self.gradient_checkpointing = False

    @property
    def layers(self) -> Sequence[Dinov2Layer]:
        return layers_of(self.dino)

    def remember(self, frames: Tensor, deep: bool = True, return_features: bool = False) -> PatchMemory:
        """Run the patch pass over frames [F,3,H,W], `frame_block` of them at a time; F may be 0."""
        if not len(frames):
            return self._nothing(frames, deep)
        parts = []
        with fast_without_gradients(self.dino):
            for block in frames.split(self.frame_block):
                if self.gradient_checkpointing and self.training:
                    part = checkpoint(self._remember, block, deep, return_features, use_reentrant=False)
                else:
                    part = self._remember(block, deep, return_features)
                parts.append(part)
        return PatchMemory.join(parts)

    def _remember(self, frames: Tensor, deep: bool, return_features: bool) -> PatchMemory:
        keys, values, x = [], [], self.dino.embeddings(frames)  # [F,N,D]
        for layer in self.layers:
            normed = layer.norm1(x)
            attention = layer.attention
            key, value = heads(attention.k_proj(normed), attention), heads(attention.v_proj(normed), attention)
            attended = attend(attention, heads(attention.q_proj(normed), attention), key, value)
            x = x + layer.drop_path(layer.layer_scale1(attention.o_proj(attended)))
            x = x + layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(x))))
            if deep:
                keys.append(key)
                values.append(value)
        features = self.dino.layernorm(x) if return_features or not deep else None
        if not deep:
            last = self.layers[-1]
            normed = last.norm1(features)
            keys = [heads(last.attention.k_proj(normed), last.attention)]
            values = [heads(last.attention.v_proj(normed), last.attention)]
        return PatchMemory(keys, values, features if return_features else None)

    def _nothing(self, frames: Tensor, deep: bool) -> PatchMemory:
        """The memory of no frames at all, which attention functions cannot make: they reshape by what there is."""
        attention, size = self.layers[-1].attention, self.dino.config.patch_size
        rows = 1 + (frames.shape[-2] // size) * (frames.shape[-1] // size)
        sizes = 0, attention.num_attention_heads, rows, attention.head_dim
        empty = frames.new_zeros(sizes, dtype=self.dino.dtype)
        layers = len(self.layers) if deep else 1
        return PatchMemory([empty] * layers, [empty] * layers)

    def look(
        self, memory: PatchMemory, queries: Tensor, deep: bool = True, return_attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Look at each frame of `memory` with a query [F,Q]: z [F,D], and the weights [F,L,H,N] if asked for."""
        h = self.query_input_proj(queries)[:, None]  # [F,1,D]
        weights = []
        if not deep:
            h, seen = self._attend_once(
                self.layers[-1].attention, h, memory.keys[0], memory.values[0], return_attention
            )
            weights.append(seen)
        else:
            for layer, keys, values in zip(self.layers, memory.keys, memory.values):
                attention = layer.attention
                attended, seen = self._attend_once(
                    attention, attention.q_proj(layer.norm1(h)), keys, values, return_attention
                )
                h = h + layer.layer_scale1(attention.o_proj(attended))
                h = h + layer.layer_scale2(layer.mlp(layer.norm2(h)))
                weights.append(seen)
        z = self.output_proj(self.dino.layernorm(h))[:, 0]
        return z, torch.stack(weights, dim=1) if return_attention else None

    @staticmethod
    def _attend_once(attention: Dinov2Attention, query: Tensor, keys: Tensor, values: Tensor, return_attention: bool):
        """Attention of one row [F,1,D] to all of a frame's: [F,1,D], and the weights [F,H,N] or None."""
        query = heads(query, attention)
        if not return_attention:
            return attend(attention, query, keys, values), None
        weights = torch.softmax(query @ keys.transpose(-2, -1) * attention.scaling, dim=-1)  # [F,H,1,N]
        return (weights @ values).transpose(1, 2).flatten(-2), weights[:, :, 0]


__all__ = ["FoveatedEncoder", "PatchMemory"]
