"""What watching and generating remember beside the decoder's own cache, as one more layer of that cache."""

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache


class VisualCacheLayer:
    """The frames' side of a cache: they fill the decoder's first positions, but are no part of `input_ids`.

    frames    visual tokens seen so far, masked ones included
    mask      [B,frames] bool, the visual tokens that the decoder attends to; None while all are
    columns   text columns seen so far, padding included
    query     [B,Q], where the next frame is to be looked at; None before the first one, and outside `watch`
    """

    is_compileable = True
    is_croppable = True
    is_sliding = False
    supports_early_init = False
    is_initialized = True

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.frames = 0
        self.columns = 0
        self.mask: Tensor | None = None
        self.query: Tensor | None = None

    def add_frames(self, mask: Tensor | None, batch_size: int, frames: int, device: torch.device) -> None:
        """Note `frames` more visual tokens, those of `mask` [B,frames] attended to (None: all)."""
        self.mask = self.extended(mask, batch_size, frames, device)
        self.frames += frames

    def extended(self, mask: Tensor | None, batch_size: int, columns: int, device: torch.device) -> Tensor | None:
        """The mask of all visual tokens and `columns` positions after them, `mask` [B,columns] of those kept."""
        if mask is None and self.mask is None:
            return None
        parts = ((self.mask, self.frames), (mask, columns))
        return torch.cat(
            [
                part if part is not None else torch.ones(batch_size, width, dtype=torch.bool, device=device)
                for part, width in parts
            ],
            dim=1,
        )

    def _map_rows(self, function) -> None:
        for name in ("mask", "query"):
            tensor = getattr(self, name)
            setattr(self, name, function(tensor) if tensor is not None else None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map_rows(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` text columns (a number <= 0, as transformers has it); never frames."""
        if tokens_to_remove > 0:
            raise ValueError(f"tokens_to_remove: {tokens_to_remove} came, a number <= 0 (how many to forget) is wanted")
        if -tokens_to_remove > self.columns:
            raise ValueError(
                f"tokens_to_remove: {tokens_to_remove} came, only {self.columns} text columns were seen; frames cannot "
                "be forgotten"
            )
        self.columns += tokens_to_remove

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        """The state is small and used at every step: it stays where it is."""

    def prefetch(self) -> None:
        """See `offload`."""


class _TextLengthMixin:
    """A cache whose length, where no layer is named, counts text columns, since `generate` slices `input_ids` by it."""

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        if layer_idx is None:
            return visual_layer(self).columns
        return super().get_seq_length(layer_idx)


class FoveatedDynamicCache(_TextLengthMixin, DynamicCache):
    """A DynamicCache with the frames' side in its last layer."""


class FoveatedStaticCache(_TextLengthMixin, StaticCache):
    """A StaticCache with the frames' side in its last layer."""


def visual_layer(cache: Cache) -> VisualCacheLayer | None:
    """The frames' layer of a cache, or None where it has none yet."""
    return next((layer for layer in reversed(cache.layers) if isinstance(layer, VisualCacheLayer)), None)


def bind(cache: Cache) -> VisualCacheLayer:
    """The frames' layer of `cache`, appended to it if absent.

    The cache object stays the same one, since its owner may hold on to it; only its class is narrowed.
    Raises TypeError for other kinds of caches, ValueError for one that is already filled without it.
    """
    if (layer := visual_layer(cache)) is not None:
        return layer
    if type(cache) not in (DynamicCache, StaticCache) or getattr(cache, "offloading", False):
        kind = "an offloaded cache" if getattr(cache, "offloading", False) else type(cache).__name__
        raise TypeError(f"past_key_values: {kind} came, a DynamicCache or a StaticCache is wanted")
    if not cache.layers:
        raise ValueError("past_key_values: DynamicCache() without a config came, DynamicCache(config=...) is wanted")
    if int(cache.get_seq_length()) > 0:
        raise ValueError("past_key_values: a filled cache without the frames' side came, an empty one is wanted")
    layer = VisualCacheLayer()
    cache.layers.append(layer)
    cache.__class__ = FoveatedDynamicCache if type(cache) is DynamicCache else FoveatedStaticCache
    return layer
