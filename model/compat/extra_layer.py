"""The last layer of a cache: what a model remembers beside its decoder's keys and values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...cmm import DecodeState

Rows = Callable[[Tensor], Tensor]


class ExtraLayer:
    """Layer of a cache that holds no keys and values but a model's own memory, with all that a cache asks of a layer.

    columns   text columns seen so far, padding included; the length of the cache
    width     positions that `mask` covers: those of the decoder that are more, or others, than text columns
    mask      [B,width] bool over them, None while every one is kept
    rows      names of all attributes that have a row for each sequence: None, tensors, states, and lists of them

    A model's layer adds to `rows`, to `reset` and to what `crop` forgets.
    """

    is_compileable = True
    is_croppable = True
    is_sliding = False
    supports_early_init = False
    is_initialized = True
    rows: tuple[str, ...] = ("mask",)
    columns = 0
    width = 0

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.columns = 0
        self.width = 0
        self.mask: Tensor | None = None

    @property
    def begun(self) -> bool:
        """Return whether anything was seen yet."""
        return self.columns > 0

    def extended(self, mask: Tensor | None, batch_size: int, columns: int, device: torch.device) -> Tensor | None:
        """Return the mask of all positions with `columns` more, `mask` [B,columns] of them kept (None: all)."""
        if mask is None and self.mask is None:
            return None
        parts = ((self.mask, self.width), (mask, columns))
        return torch.cat(
            [
                part if part is not None else torch.ones(batch_size, width, dtype=torch.bool, device=device)
                for part, width in parts
            ],
            dim=1,
        )

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map_rows(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def _map_rows(self, function: Rows) -> None:
        for name in self.rows:
            setattr(self, name, _mapped(getattr(self, name), function))

    def activate_past_recording(self) -> None:
        """Let each call leave what `crop` needs to forget any of its columns: here it needs nothing."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` text columns (a number <= 0, as transformers has it), and nothing else.

        With 0 the layer may drop what it recorded for a crop. Raises ValueError for more columns than were seen.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop: tokens_to_remove is {tokens_to_remove}; expected minus the number to forget, <= 0")
        forgotten = -tokens_to_remove
        if not self.begun:
            return
        if forgotten > self.columns:
            raise ValueError(
                f"crop: tokens_to_remove is {tokens_to_remove}; expected at least {-self.columns}, since only "
                f"{self.columns} text columns were seen"
            )
        self._forget(forgotten)
        self.columns -= forgotten

    def _forget(self, columns: int) -> None:
        """Take the last text columns, or none, out of the memory; `columns` itself is set by `crop`."""

    def get_max_length(self) -> int:
        return -1

    def offload(self) -> None:
        """Leave the memory where it is, since it is small and used at every step."""

    def prefetch(self) -> None:
        """Do nothing, since `offload` does nothing."""


def _mapped(kept: Any, function: Rows) -> Any:
    if isinstance(kept, list | tuple):
        mapped = [_mapped(one, function) for one in kept]
        return type(kept)(*mapped) if hasattr(kept, "_fields") else type(kept)(mapped)
    if isinstance(kept, DecodeState):
        return kept.map(function)
    return None if kept is None else function(kept)
