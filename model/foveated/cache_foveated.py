"""What watching and generating remember beside the decoder's own cache, as one more layer of that cache."""

import torch
from torch import Tensor

from ..compat import ExtraLayer


class VisualCacheLayer(ExtraLayer):
    """The frames' side of a cache: they fill the decoder's first positions, but are no part of `input_ids`.

    frames    visual tokens seen so far, masked ones included
    mask      [B,frames] bool, the visual tokens that the decoder attends to; None while all are
    columns   text columns seen so far, padding included
    query     [B,Q], where the next frame is to be looked at; None before the first one, and outside `watch`
    """

    def reset(self) -> None:
        self.frames = 0
        self.columns = 0
        self.mask: Tensor | None = None
        self.query: Tensor | None = None

    @property
    def begun(self) -> bool:
        return self.frames + self.columns > 0

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
