"""An Lfm2Model in operators of ONNX Runtime: few of them, and caches that it may change where they lie."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .versions import is_tested

MICROSOFT = "com.microsoft"
LENGTH = "length"


class FusedDecoder(nn.Module):
    """An Lfm2Model as a map (embeddings [B,T,D], state) -> (hidden states of the last token [B,1,D], the next state).

    state   "length" [1] int32, the number P of positions before; "key.i" and "value.i" [B,H,S,D_h] of an attention
            layer i, whose first P positions count, S of any size >= P + T; "window.i" [B,K-1,D], the last inputs of
            a short convolution of K taps

    No row has padding. For export to ONNX alone: attention (GroupQueryAttention), rotations and norms are operators of
    ONNX Runtime, of which PyTorch knows the shapes and computes nothing. Products that share an input are one.

    Raises ValueError for another decoder, and for a version of transformers that was not tested.
    """

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.config: Any = decoder.config
        if self.config.model_type != "lfm2":
            raise ValueError(f"export: text_config.model_type is {self.config.model_type!r}; expected 'lfm2'")
        if not is_tested():
            raise ValueError("export: this version of transformers was not tested; expected one that setup.py admits")
        rotations: Any = decoder.rotary_emb
        if rotations.rope_type != "default":
            raise ValueError(f"export: text_config's rope_type is {rotations.rope_type!r}; expected 'default'")
        self.rotations = rotations
        layers: Any = decoder.layers
        self.layers: Any = nn.ModuleList(
            _layer(layer, kind) for layer, kind in zip(layers, self.config.layer_types, strict=True)
        )
        self.norm = decoder.embedding_norm

    def state_shapes(self) -> dict[str, tuple[int | str, ...]]:
        """Name -> shape of one row, of the state's tensors but "length"; "S" for the positions there is room for."""
        config = self.config
        shapes: dict[str, tuple[int | str, ...]] = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer.mixer, _Convolution):
                shapes[f"window.{index}"] = (config.conv_L_cache - 1, config.hidden_size)
            else:
                shapes[f"key.{index}"] = shapes[f"value.{index}"] = (
                    config.num_key_value_heads,
                    "S",
                    layer.mixer.head_dim,
                )
        return shapes

    def forward(self, embeddings: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, before = embeddings.shape[1], state[LENGTH]
        length = before + tokens
        positions = before + torch.arange(tokens, device=before.device)
        angles = positions[:, None].float() * self.rotations.inv_freq[None]
        waves = (angles.cos(), angles.sin())
        hidden, after = embeddings, {LENGTH: length.to(before.dtype)}
        for index, layer in enumerate(self.layers):
            own = {name: state[f"{name}.{index}"] for name in layer.mixer.names}
            hidden, stepped = layer(hidden, own, after[LENGTH], waves)
            after |= {f"{name}.{index}": tensor for name, tensor in stepped.items()}
        return _norm(hidden[:, -1:], self.norm), after


class _Layer(nn.Module):
    """Decoder layer: its mixer and its feed-forward network, each added to what it has read."""

    def __init__(self, layer: Any, mixer: "_Attention | _Convolution"):
        super().__init__()
        self.mixer, self.operator_norm, self.ffn_norm = mixer, layer.operator_norm, layer.ffn_norm
        self.down = layer.feed_forward.w2
        self.gate_and_up = _joined(layer.feed_forward.w1, layer.feed_forward.w3)

    def forward(self, hidden: Tensor, state: dict[str, Tensor], length: Tensor, waves: tuple[Tensor, Tensor]):
        mixed, after = self.mixer(_norm(hidden, self.operator_norm), state, length, waves)
        hidden = hidden + mixed
        gate, up = self.gate_and_up(_norm(hidden, self.ffn_norm)).chunk(2, -1)
        return hidden + self.down(F.silu(gate) * up), after


class _Attention(nn.Module):
    names = ("key", "value")

    def __init__(self, attention: Any):
        super().__init__()
        self.products = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out, self.head_dim, self.scale = attention.out_proj, attention.head_dim, attention.scaling
        self.query_norm, self.key_norm = attention.q_layernorm, attention.k_layernorm
        self.heads, self.shared_heads = (
            product.out_features // self.head_dim for product in (attention.q_proj, attention.k_proj)
        )

    def forward(self, x: Tensor, state: dict[str, Tensor], length: Tensor, waves: tuple[Tensor, Tensor]):
        widths = [heads * self.head_dim for heads in (self.heads, self.shared_heads, self.shared_heads)]
        query, key, value = self.products(x).split(widths, -1)
        query, key = self._turned(query, self.query_norm, waves), self._turned(key, self.key_norm, waves)
        past = (state["key"], state["value"])
        mixed, *present = torch.onnx.ops.symbolic_multi_out(
            f"{MICROSOFT}::GroupQueryAttention",
            (query, key, value, *past, (length - 1).expand(x.shape[0]), length),
            {"num_heads": self.heads, "kv_num_heads": self.shared_heads, "scale": self.scale},
            dtypes=(x.dtype,) * 3,
            shapes=(query.shape, *(one.shape for one in past)),
            version=1,
        )
        return self.out(mixed), dict(zip(self.names, present))

    def _turned(self, x: Tensor, norm: nn.Module, waves: tuple[Tensor, Tensor]) -> Tensor:
        """Heads [B,T,H*D_h], each normed and rotated by its position."""
        normed = _norm(x.unflatten(-1, (-1, self.head_dim)), norm).flatten(2)
        first = torch.zeros(1, dtype=torch.int64, device=x.device)  # row of the waves that is the first token's
        inputs = (normed, first, *waves)
        name = f"{MICROSOFT}::RotaryEmbedding"
        return torch.onnx.ops.symbolic(name, inputs, dtype=x.dtype, shape=normed.shape, version=1)


class _Convolution(nn.Module):
    names = ("window",)
    taps: Tensor

    def __init__(self, convolution: Any):
        super().__init__()
        self.products, self.out, self.bias = convolution.in_proj, convolution.out_proj, convolution.conv.bias
        taps = convolution.conv.weight.detach().squeeze(1).T.contiguous()  # [K,D]
        self.register_buffer("taps", taps, persistent=False)

    def forward(self, x: Tensor, state: dict[str, Tensor], length: Tensor, waves: tuple[Tensor, Tensor]):
        tokens = x.shape[1]
        before, after, inner = self.products(x).chunk(3, -1)
        seen = torch.cat([state["window"], before * inner], 1)  # [B,K-1+T,D]
        mixed = sum(tap * seen[:, shift : shift + tokens] for shift, tap in enumerate(self.taps))
        if self.bias is not None:
            mixed = mixed + self.bias
        return self.out(after * mixed), {"window": seen[:, tokens:]}


def _layer(layer: Any, kind: str) -> _Layer:
    return _Layer(layer, _Convolution(layer.conv) if kind == "conv" else _Attention(layer.self_attn))


def _norm(x: Tensor, layer: Any) -> Tensor:
    attributes = {"axis": -1, "epsilon": layer.variance_epsilon}
    name = "SimplifiedLayerNormalization"
    return torch.onnx.ops.symbolic(name, (x, layer.weight), attributes, dtype=x.dtype, shape=x.shape, version=1)


def _joined(*layers: nn.Linear) -> nn.Linear:
    """Linear layers of one input as one, whose outputs follow one another."""
    with torch.device("meta"):
        joined = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), bias=False)
    joined.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False)
    return joined


__all__ = ["LENGTH", "FusedDecoder"]
