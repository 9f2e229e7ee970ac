"""An Lfm2Model with its cache as tensors that go in and come out, for exported graphs."""

from typing import Any

import torch
from torch import Tensor, nn

from .versions import CACHE, is_tested


class GraphCache:
    """Stand-in for a cache, of which the layers of an Lfm2Model get new tensors: nothing is changed in place.

    state   name -> tensor: "key.i" and "value.i" [B,H,P,D_h] of an attention layer i, "window.i" [B,D,K-1], the last
            inputs of a short convolution of K taps, before this call; after it `after` has the same names
    """

    def __init__(self, state: dict[str, Tensor]):
        self.before = state
        self.after: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        keys, values = (
            torch.cat([self.before[f"{name}.{layer_idx}"], new], dim=2)
            for name, new in (("key", key_states), ("value", value_states))
        )
        self.after |= {f"key.{layer_idx}": keys, f"value.{layer_idx}": values}
        return keys, values

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> None:
        """Give no window to be changed in place: layers then go on as for whole sequences, by `update_conv_state`."""

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def update_conv_state(self, conv_states: Tensor, layer_idx: int, *_, **__) -> Tensor:
        before = self.before[f"window.{layer_idx}"]
        window = torch.cat([before, conv_states], dim=-1)
        self.after[f"window.{layer_idx}"] = window[..., window.shape[-1] - before.shape[-1] :]
        return window


class GraphDecoder(nn.Module):
    """An Lfm2Model as a map (embeddings [B,T,D], mask [B,T] or None, state) -> (hidden states [B,T,D], the next state).

    state   that of `GraphCache`, and "kept" [B,P] bool, which of the P positions before are no padding

    Raises ValueError for another decoder, and for a version of transformers that was not tested.
    """

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder = decoder
        self.config: Any = decoder.config
        if self.config.model_type != "lfm2":
            raise ValueError(f"export: text_config.model_type is {self.config.model_type!r}; expected 'lfm2'")
        if not is_tested():
            raise ValueError("export: this version of transformers was not tested; expected one that setup.py admits")

    def state_shapes(self) -> dict[str, tuple[int | str, ...]]:
        """Name -> shape of one row, of the tensors in the state; "P" for the positions before."""
        config = self.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shapes: dict[str, tuple[int | str, ...]] = {"kept": ("P",)}
        for layer, kind in enumerate(config.layer_types):
            if kind == "conv":
                shapes[f"window.{layer}"] = (config.hidden_size, config.conv_L_cache - 1)
            else:
                shapes[f"key.{layer}"] = shapes[f"value.{layer}"] = (config.num_key_value_heads, "P", head_dim)
        return shapes

    def forward(
        self, embeddings: Tensor, mask: Tensor | None, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        here = torch.ones_like(embeddings[..., 0], dtype=torch.bool) if mask is None else mask
        kept = torch.cat([state["kept"], here], dim=1)
        past, columns = state["kept"].shape[1], here.shape[1]
        positions = (kept.long().cumsum(1) - 1).clamp(min=0)[:, past:]
        cache = GraphCache(state)
        named: dict[str, Any] = {CACHE: cache}
        hidden = self.decoder(
            inputs_embeds=embeddings,
            attention_mask={"full_attention": _seen(kept, past, columns, embeddings.dtype), "conv": mask},
            position_ids=positions,
            use_cache=True,
            **named,
        ).last_hidden_state
        return hidden, {"kept": kept, **cache.after}


def _seen(kept: Tensor, past: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Compute what each of the last `columns` of the positions kept [B,P+T] adds to its scores, [B,1,T,P+T].

    0 for itself and for the kept ones before it, minus infinity for all others; padding sees itself, so that no row is
    without a number.
    """
    index = torch.arange(kept.shape[1], device=kept.device)
    query = (past + torch.arange(columns, device=kept.device))[:, None]
    seen = (kept[:, None, :] & (index < query)) | (index == query)  # [B,T,P+T]
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, float("-inf"))[:, None]
