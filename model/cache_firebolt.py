"""What generation remembers beside the decoder's own cache: the connector's state, as one more layer of that cache."""

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer

from ..cmm import DecodeState


class ConnectorCacheLayer:
    """The connector's side of a conversation, appended to the layers of the Cache that `generate` makes.

    state        the connector's DecodeState: SSM state, grid-side table, keys and grid mask; None where no row has an
                 image, or where the fusion never reads the connector again
    image_rows   [B] bool, the rows that have an image; None where none has
    columns      text columns seen so far, padding included
    kept         [B] int64, text tokens seen so far, padding not included
    inserted     [B] int64, decoder positions that are not text columns (prepended grids, pooled vector, prompt copy)
    width        decoder positions so far where a fusion inserts some, padding included
    mask         [B,width] bool over those, None while every one is kept
    prompt       with fusion "concat", until the prompt ends: the modulated chunks so far, each with its mask
    """

    is_compileable = True
    is_sliding = False
    supports_early_init = False
    is_initialized = True

    def __init__(self):
        self.record_past = False
        self.reset()

    def reset(self) -> None:
        self.state: DecodeState | None = None
        self.image_rows: Tensor | None = None
        self.columns = 0
        self.kept: Tensor | None = None
        self.inserted: Tensor | None = None
        self.width = 0
        self.mask: Tensor | None = None
        self.prompt: list[tuple[Tensor, Tensor]] = []

    def extended(self, mask: Tensor | None, batch_size: int, columns: int, device: torch.device) -> Tensor | None:
        """The mask of all decoder positions with `columns` more, `mask` [B,columns] of them kept (None: all)."""
        if mask is None and self.mask is None:
            return None
        before = self.mask
        if before is None:
            before = torch.ones(batch_size, self.width, dtype=torch.bool, device=device)
        if mask is None:
            mask = torch.ones(batch_size, columns, dtype=torch.bool, device=device)
        return torch.cat([before, mask], dim=1)

    def _map_rows(self, function, state_function) -> None:
        self.state = state_function(self.state) if self.state is not None else None
        for name in ("image_rows", "kept", "inserted", "mask"):
            tensor = getattr(self, name)
            setattr(self, name, function(tensor) if tensor is not None else None)
        self.prompt = [(function(chunk), function(mask)) for chunk, mask in self.prompt]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        def select(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, indices.to(tensor.device))

        self._map_rows(select, lambda state: state.index_select(indices))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_rows(
            lambda tensor: tensor.repeat_interleave(repeats, dim=0), lambda state: state.repeat_interleave(repeats)
        )

    def activate_past_recording(self) -> None:
        """From now on each call leaves the states that `crop` needs to forget any of its columns."""
        self.record_past = True

    @property
    def is_croppable(self) -> bool:
        return self.record_past

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` text columns (a number <= 0, as transformers has it)."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: {tokens_to_remove} came, a number <= 0 (how many to forget) is wanted")
        n = -tokens_to_remove
        if n == 0 or self.columns == 0:
            return
        if n > self.columns:
            raise ValueError(f"tokens_to_remove: {tokens_to_remove} came, only {self.columns} columns were seen")
        if self.state is not None:
            self.state = self.state.rollback(n)
        forgotten = torch.full_like(self.kept, n)
        if self.mask is not None:
            forgotten = self.mask[:, -n:].sum(-1)
            self.mask = self.mask[:, :-n]
        self.width = max(self.width - n, 0)
        self.columns -= n
        self.kept = self.kept - forgotten

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        """The state is small and used at every step: it stays where it is."""

    def prefetch(self) -> None:
        """See `offload`."""


class GrowingLayer(DynamicLayer):
    """The keys and values of an attention layer, [B,H,L,D_h] each: the first L positions of memory with room for more.

    A DynamicLayer copies all of them for each token. Here a token costs its own keys and values, and every `MARGIN`
    tokens a copy. Where gradients are recorded it is a DynamicLayer.
    """

    MARGIN = 256

    _rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self._has_room(end, key_states):
            self._rooms = tuple(self._moved(kept, new, end) for kept, new in self._pairs(key_states, value_states))
        for room, new in zip(self._rooms, (key_states, value_states)):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)
        return self.keys, self.values

    def _pairs(self, key_states: Tensor, value_states: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(self.keys, key_states), (self.values, value_states)]

    def _has_room(self, end: int, new: Tensor) -> bool:
        """Whether what is kept lies in the rooms (a beam search puts others in its place) and `end` positions fit."""
        if self._rooms is None or self.keys.data_ptr() != self._rooms[0].data_ptr():
            return False
        if self._rooms[0].is_inference() and not torch.is_inference_mode_enabled():
            return False  # such memory cannot be written to here
        batch_size, _, size, _ = self._rooms[0].shape
        return size >= end and batch_size == new.shape[0]

    def _moved(self, kept: Tensor, new: Tensor, end: int) -> Tensor:
        room = new.new_empty(*new.shape[:2], end + self.MARGIN, new.shape[-1])
        if kept.numel():
            room[:, :, : kept.shape[-2]] = kept
        return room

    def reset(self) -> None:
        self._rooms = None
        super().reset()


class _TextLengthMixin:
    """A cache whose length, where no layer is named, counts text columns.

    `generate` slices `input_ids` by the length of the cache. Prepended grids, a pooled vector or a second copy of the
    prompt lengthen the decoder's layers but are not part of `input_ids`. Masks are made from a named layer's length.
    """

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        if layer_idx is None:
            return connector_layer(self).columns
        return super().get_seq_length(layer_idx)


class FireboltDynamicCache(_TextLengthMixin, DynamicCache):
    """A DynamicCache with the connector's state in its last layer."""


class FireboltStaticCache(_TextLengthMixin, StaticCache):
    """A StaticCache with the connector's state in its last layer."""


def connector_layer(cache: Cache) -> ConnectorCacheLayer | None:
    """The connector's layer of a cache, or None where it has none yet."""
    return next((layer for layer in reversed(cache.layers) if isinstance(layer, ConnectorCacheLayer)), None)


def bind(cache: Cache) -> ConnectorCacheLayer:
    """The connector's layer of `cache`, appended to it if absent.

    The cache object stays the same one, since its owner may hold on to it; only its class is narrowed, and that of
    its attention layers to GrowingLayer.
    Raises TypeError for caches that LFM2's short convolutions cannot use, ValueError for one that is already filled.
    """
    if (layer := connector_layer(cache)) is not None:
        return layer
    if type(cache) not in (DynamicCache, StaticCache) or getattr(cache, "offloading", False):
        kind = "an offloaded cache" if getattr(cache, "offloading", False) else type(cache).__name__
        raise TypeError(f"past_key_values: {kind} came; LFM2 works with a DynamicCache or a StaticCache alone")
    if not cache.layers:
        raise ValueError("past_key_values: DynamicCache() without a config came, DynamicCache(config=...) is wanted")
    if int(cache.get_seq_length()) > 0:
        raise ValueError("past_key_values: a filled cache without the connector's state came, an empty one is wanted")
    for attention in cache.layers:
        if type(attention) is DynamicLayer:
            attention.__class__ = GrowingLayer
    layer = ConnectorCacheLayer()
    cache.layers.append(layer)
    cache.__class__ = FireboltDynamicCache if type(cache) is DynamicCache else FireboltStaticCache
    return layer
