"""What generation remembers beside the decoder's own cache: the connector's state, as one more layer of that cache."""

import torch
from torch import Tensor

from ...cmm import DecodeState
from ..compat import ExtraLayer


class ConnectorCacheLayer(ExtraLayer):
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

    record_past = False

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
