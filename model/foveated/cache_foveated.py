"""Memory of watching and generating beside the decoder's own cache, as one more layer of that cache."""

import torch
from torch import Tensor

from ..compat import ExtraLayer


class VisualCacheLayer(ExtraLayer):
    """Frames' side of a cache: they fill the decoder's first positions, but are no part of `input_ids`.

    columns   text columns seen so far, padding included
    width     visual tokens seen so far, masked ones included
    mask      [B,width] bool, the visual tokens that the decoder attends to; None while all are
    query     [B,Q], where the next frame is to be looked at; None before the first one, and outside `watch`
    """

    rows = ("mask", "query")

    def reset(self) -> None:
        super().reset()
        self.query: Tensor | None = None

    @property
    def begun(self) -> bool:
        return self.width + self.columns > 0

    def add_frames(self, mask: Tensor | None, batch_size: int, frames: int, device: torch.device) -> None:
        """Note `frames` more visual tokens, those of `mask` [B,frames] attended to (None: all)."""
        self.mask = self.extended(mask, batch_size, frames, device)
        self.width += frames
