"""Caches of transformers with room to grow, and with a layer of ours at their end."""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer

from ...cmm.classes import change_class
from .extra_layer import ExtraLayer
from .versions import CACHE, can_replace

Layer = TypeVar("Layer", bound=ExtraLayer)


class GrowingLayer(DynamicLayer):
    """Keys and values of an attention layer, [B,H,L,D_h] each: the first L positions of memory with room for more.

    A DynamicLayer copies all of them for each token. Here a token costs its own keys and values, and every `MARGIN`
    tokens a copy. Where gradients or a graph are recorded it is a DynamicLayer.
    """

    MARGIN = 256

    _rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        recorded = torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad)
        if recorded or _is_traced(key_states):
            self._rooms = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        rooms = self._rooms_for(end, key_states)
        if rooms is None:
            rooms = self._rooms = self._moved(self.keys, key_states, end), self._moved(self.values, value_states, end)
        for room, new in zip(rooms, (key_states, value_states)):
            room[:, :, start:end] = new
        self.keys, self.values = keys, values = rooms[0][:, :, :end], rooms[1][:, :, :end]
        return keys, values

    def _rooms_for(self, end: int, new: Tensor) -> tuple[Tensor, Tensor] | None:
        """The rooms, if what is kept lies in them (a beam search puts others in its place) and `end` positions fit."""
        rooms = self._rooms
        if rooms is None or self.keys is None or self.keys.data_ptr() != rooms[0].data_ptr():
            return None
        if rooms[0].is_inference() and not torch.is_inference_mode_enabled():
            return None  # such memory cannot be written to here
        batch_size, _, size, _ = rooms[0].shape
        return rooms if size >= end and batch_size == new.shape[0] else None

    def _moved(self, kept: Tensor | None, new: Tensor, end: int) -> Tensor:
        # Zeros: who walks over the cache's tensors, to save them or to compare, finds numbers.
        room = new.new_zeros(*new.shape[:2], end + self.MARGIN, new.shape[-1])
        if kept is not None and kept.numel():
            room[:, :, : kept.shape[-2]] = kept
        return room

    def reset(self) -> None:
        self._rooms = None
        super().reset()


def _is_traced(tensor: Tensor) -> bool:
    """Return whether a graph is made, or nothing is computed at all: then a tensor has no address."""
    return torch.compiler.is_compiling() or type(tensor) is not Tensor


class _TextLengthMixin(Cache):
    """A cache whose length, where no layer is named, counts text columns.

    `generate` slices `input_ids` by the length of the cache. What a model puts into the decoder beside the text
    (frames, prepended grids, a pooled vector, a second copy of the prompt) lengthens the decoder's layers but is no
    part of `input_ids`. Masks are made from a named layer's length.
    """

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        if layer_idx is None:
            return next(layer for layer in reversed(self.layers) if isinstance(layer, ExtraLayer)).columns
        return super().get_seq_length(layer_idx)


class ExtendedDynamicCache(_TextLengthMixin, DynamicCache):
    """A DynamicCache with a layer of ours at its end."""


class ExtendedStaticCache(_TextLengthMixin, StaticCache):
    """A StaticCache with a layer of ours at its end."""


def find_layer(cache: Cache, kind: type[Layer]) -> Layer | None:
    """Return the layer of class `kind` in a cache, or None where there is none yet."""
    return next((layer for layer in reversed(cache.layers) if isinstance(layer, kind)), None)


def extend(cache: Cache, kind: type[Layer]) -> Layer:
    """Return the layer of class `kind` of `cache`, appended to it if absent.

    The cache object stays the same one, since its owner may hold on to it; only its class is narrowed, and that of
    its attention layers to GrowingLayer.
    Raises TypeError for caches other than DynamicCache and StaticCache, ValueError for one that is already filled.
    """
    if (layer := find_layer(cache, kind)) is not None:
        return layer
    if type(cache) not in (DynamicCache, StaticCache) or getattr(cache, "offloading", False):
        found = "an offloaded cache" if getattr(cache, "offloading", False) else f"a {type(cache).__name__}"
        raise TypeError(f"{CACHE} is {found}; expected a DynamicCache or a StaticCache")
    if not cache.layers:
        raise ValueError(f"{CACHE} is a DynamicCache without a config; expected DynamicCache(config=...)")
    if int(cache.get_seq_length()) > 0:
        raise ValueError(f"{CACHE} is a cache that was filled without this model; expected an empty one")
    if can_replace(DynamicLayer, "update", ("self", "key_states", "value_states", "args", "kwargs")):
        for attention in cache.layers:
            if type(attention) is DynamicLayer:
                change_class(attention, GrowingLayer)
    layer = kind()
    if any(getattr(other, "record_past", False) for other in cache.layers):
        layer.activate_past_recording()
    cast("list[Any]", cache.layers).append(layer)  # it does what is asked of a layer, and derives from none
    change_class(cache, ExtendedDynamicCache if type(cache) is DynamicCache else ExtendedStaticCache)
    return layer
