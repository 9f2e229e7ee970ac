"""Base of the connectors that give the decoder positions of their own, before the text."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from .connector import After, Connector, GridSide
from .inputs import without_masked
from .sequences import Sequences
from .state import DecodeState


@dataclass
class WaitingGrids(GridSide):
    """Grids as the decoder takes them: `embeddings` [B,M,D_t], None once they are inserted."""

    embeddings: Tensor | None = None


Waiting = TypeVar("Waiting", bound=WaitingGrids)


class Inserting(Connector[Waiting]):
    """A connector whose output is `[what it makes of the grids ; X_t]`, [B,M+T,D_t].

    `forward`, and `prefill` where a sequence starts (`grids`, or a state of `encode_grids`), return [B,M+T,D_t], all
    others [B,T,D_t]: once inserted, the grids are the decoder's to remember, and "grid.embeddings" leaves the state.
    `inserted_mask` tells which of the M positions there are; the others are zero.
    """

    inserts_grids = True
    weighs_grids = False

    @abstractmethod
    def inserted_mask(self, grid_mask: Tensor, grid_images: Tensor | None = None) -> Tensor:
        """The inserted positions that there are, [B,M] bool, of grid_mask [B,G] and grid_images [B,G]."""

    def add_grids(self, state: DecodeState, *args: Any, **kwargs: Any) -> DecodeState:
        """Raise ValueError: grids that came later would have to stand within the text."""
        raise ValueError(
            f"{type(self).__name__}: add_grids is called; expected of a connector whose grids stand beside the text, "
            "CrossModalModulator or CrossAttend"
        )

    def step(self, token: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """The token as it is, and the state after it. Raises ValueError while the grids have not been inserted."""
        if self.side_class.of(state).embeddings is not None:
            raise ValueError(
                f"{type(self).__name__}: state has grids that are not inserted yet; expected the state that prefill "
                "returns"
            )
        return super().step(token, state)

    def _connect(
        self,
        text: Tensor,
        text_mask: Tensor | None,
        side: Waiting,
        mix: Callable[[Tensor], tuple[Tensor, After]],
        sequences: Sequences | None = None,
    ) -> tuple[Tensor, None, After]:
        y, after = mix(without_masked(text, text_mask))
        return y if side.embeddings is None else torch.cat([side.embeddings.to(text.dtype), y], 1), None, after

    def _mix_piece(
        self, x: Tensor, mask: Tensor | None, state: DecodeState, history: int
    ) -> tuple[Tensor, DecodeState]:
        inserted = WaitingGrids(self.side_class.of(state).mask)
        return super()._mix_piece(x, mask, DecodeState(inserted.tensors(), state.length), history)
