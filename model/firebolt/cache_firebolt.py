"""Memory of generation beside the decoder's own cache: the connector's state, as one more layer of that cache."""

from torch import Tensor

from ...cmm import DecodeState
from ..compat import ExtraLayer


class ConnectorCacheLayer(ExtraLayer):
    """Connector's side of a conversation, appended to the layers of the Cache that `generate` makes.

    state        the connector's DecodeState: SSM state, grid-side table, keys and grid mask; None where no row has an
                 image, or where the fusion never reads the connector again
    image_rows   [B] bool, the rows that have an image; None where none has
    columns      text columns seen so far, padding included
    kept         [B] int64, text tokens seen so far, padding not included; None before the first call
    inserted     [B] int64, decoder positions that are not text columns (prepended grids, pooled vector, prompt copy)
    width        decoder positions so far where a fusion inserts some, padding included
    mask         [B,width] bool over those, None while every one is kept
    prompt       with fusion "concat", until the prompt ends: the modulated chunks so far, each with its mask
    """

    record_past = False
    rows = ("state", "image_rows", "kept", "inserted", "mask", "prompt")

    def reset(self) -> None:
        super().reset()
        self.state: DecodeState | None = None
        self.image_rows: Tensor | None = None
        self.kept: Tensor | None = None
        self.inserted: Tensor | None = None
        self.prompt: list[tuple[Tensor, Tensor]] = []

    def activate_past_recording(self) -> None:
        """Let each call leave the states that `crop` needs to forget any of its columns."""
        self.record_past = True

    @property
    def is_croppable(self) -> bool:
        return self.record_past

    def _forget(self, columns: int) -> None:
        if self.state is not None:
            self.state = self.state.rollback(columns)
        gone = columns
        if self.mask is not None:
            gone = self.mask[:, -columns:].sum(-1)
            self.mask = self.mask[:, :-columns]
        if self.kept is not None:
            self.kept = self.kept - gone
        self.width = max(self.width - columns, 0)
