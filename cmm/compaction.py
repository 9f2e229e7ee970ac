"""Packing of each row's kept positions, so that masked ones do not exist for a block; results are put back."""

import torch
from torch import Tensor

from .sequences import Sequences


class Packing:
    """Map of the kept positions of [B, T] to their places when those of a row are packed together.

    mask      [B, T] bool, True = keep; None, also where it keeps everything: then nothing is moved
    lengths   [B] int64, kept positions of each row
    sequences those packed into the one row, where they are; there is no mask then

    What lies at masked positions is never read, not even as a factor of zero.
    """

    def __init__(self, mask: Tensor | None, x: Tensor, sequences: Sequences | None = None):
        self.batch, self.time = x.shape[:2]
        self.sequences = sequences
        # Looking into the mask would wait for an accelerator and break a traced graph, so it is done where it is free.
        if mask is not None and mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
            mask = None
        self.mask = mask
        if mask is None:
            self.lengths = torch.full((self.batch,), self.time, dtype=torch.int64, device=x.device)
        else:
            self.lengths = mask.sum(1)
            self._positions = torch.arange(self.time, device=x.device)
            self._kept_first = torch.argsort(~mask, dim=1, stable=True)

    @property
    def cu_seqlens(self) -> Tensor | None:
        """Borders of packed sequences, as the kernels take them."""
        return None if self.sequences is None else self.sequences.cu_seqlens

    @property
    def longest(self) -> int:
        """Positions of the longest sequence."""
        return self.time if self.sequences is None else self.sequences.longest

    @property
    def packed_mask(self) -> Tensor:
        """[B, T], True where `left` puts a kept position."""
        return self._positions < self.lengths[:, None]

    def left(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> each row's kept positions at its start, in their order, zeros after them."""
        if self.mask is None:
            return x
        return torch.where(self.packed_mask[..., None], take(x, self._kept_first), 0)

    def right_from_left(self, packed: Tensor) -> Tensor:
        """`left`'s result with the kept positions at each row's end and the zeros before them."""
        if self.mask is None:
            return packed
        return take(packed, (self._positions + self.lengths[:, None]) % self.time)

    def restore(self, packed: Tensor) -> Tensor:
        """`left`'s inverse: [B, T, D] back to the positions it came from, zeros at the masked ones."""
        if self.mask is None:
            return packed
        rank = (self.mask.cumsum(1) - 1).clamp(min=0)
        return torch.where(self.mask[..., None], take(packed, rank), 0)


def take(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, D], index [B, T'] -> [B, T', D]: in each row the positions that `index` names."""
    return torch.gather(x, 1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def window_before(x: Tensor, ends: Tensor, size: int) -> Tensor:
    """x [B, T, D] -> [B, size, D]: in each row the `size` positions before its `ends` [B], which is at least `size`."""
    return take(x, ends[:, None] - size + torch.arange(size, device=x.device))
