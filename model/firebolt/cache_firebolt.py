"""Memory of generation beside the decoder's own cache: the connector's state, as one more layer of that cache."""

from typing import NamedTuple

from torch import Tensor

from ...cmm import DecodeState
from ...cmm.connector import PREFIX, Connector
from ..compat import ExtraLayer
from .grids import Grids

SINCE = f"{PREFIX}since"
Call = tuple[Tensor, Tensor | None]
"""The text of a call: embeddings [B,T,D], and mask [B,T] or None."""


class Images(NamedTuple):
    """Images of a connector that puts them where the text has a token for each.

    vectors  [B,I,D], those that a row has first
    counts   [B] int64, how many it has
    tokens   [B,columns] bool, the columns so far that have such a token
    """

    vectors: Tensor
    counts: Tensor
    tokens: Tensor


class ConnectorCacheLayer(ExtraLayer):
    """Connector's side of a conversation, appended to the layers of the Cache that `generate` makes.

    state        the connector's DecodeState: SSM state, grid-side table, keys and grid mask; None where no row has an
                 image, or where the fusion never reads the connector again. Read it by `state_of`
    image_rows   [B] bool, the rows that have an image so far; None where none has
    columns      text columns seen so far, padding included
    kept         [B] int64, text tokens seen so far, padding not included; None before the first call
    inserted     [B] int64, decoder positions that are not text columns (prepended grids, pooled vector, prompt copy)
    width        decoder positions so far where a fusion inserts some, padding included
    mask         [B,width] bool over those, None while every one is kept
    prompt       with fusion "concat", until the prompt ends: the modulated chunks so far, each with its mask
    images       what a connector puts in the place of tokens; None where it puts nothing there
    recorded     the text since the last crop, a call each: embeddings [B,T,D] and mask [B,T] or None; none without
                 `record_past`
    before       the connector's state before the recorded text

    Grids may come later: a row's connector begins with its first ones, as if the text before them were not there. That
    text cannot be cropped again, nor can any text before a grid.

    A crop takes columns from the recorded text; what is left of it goes through the connector again when its state is
    next asked for. So a crop reaches back to the one before it, or to where recording began, as in transformers' own
    layers of convolutions.
    """

    record_past = False
    rows = ("state", "image_rows", "kept", "inserted", "mask", "prompt", "images", "recorded", "before")

    def reset(self) -> None:
        super().reset()
        self.state: DecodeState | None = None
        self.image_rows: Tensor | None = None
        self.kept: Tensor | None = None
        self.inserted: Tensor | None = None
        self.prompt: list[Call] = []
        self.images: Images | None = None
        self.recorded: list[Call] = []
        self.before: DecodeState | None = None
        self._outdated = False  # `state` is the one before the last crop

    @property
    def begun(self) -> bool:
        return self.kept is not None

    def activate_past_recording(self) -> None:
        """Let each call leave the text that `crop` needs to forget any of its columns."""
        if not self.record_past:
            self.record_past = True
            self._settle()

    @property
    def is_croppable(self) -> bool:
        return self.record_past

    def record(self, embeddings: Tensor, mask: Tensor | None) -> None:
        """Keep the text of a call, embeddings [B,T,D] and mask [B,T], if past calls are recorded."""
        if self.record_past:
            self.recorded.append((embeddings, mask))

    def start(self, state: DecodeState) -> None:
        """Take the connector's state before the first text column."""
        self.state = self.before = state

    def state_of(self, connector: Connector) -> DecodeState | None:
        """Return the state after all columns, computed again by the connector where a crop has changed them."""
        if self._outdated:
            state = self.before
            for embeddings, mask in self.recorded:
                _, state = connector.prefill(embeddings, text_mask=mask, state=state)
            self.state, self._outdated = state, False
            self._settle()
        return self.state

    def add_grids(self, connector: Connector, seen: Grids) -> None:
        """Let the columns that follow see more grids, beside those that their rows have."""
        state, there = self.state_of(connector), self.image_rows
        if state is None or there is None:
            state = connector.encode_grids(**seen.given)
            there = seen.rows
        else:
            state = _begun_again(connector.add_grids(state, **seen.given), seen.rows & ~there)
            there = there | seen.rows
        self.state, self.image_rows = state, there
        self._settle()

    def _settle(self) -> None:
        """Forget the recorded text, unless the state is still to be computed from it."""
        if not self._outdated:
            self.before, self.recorded = self.state, []

    def _forget(self, columns: int) -> None:
        recorded = sum(embeddings.shape[1] for embeddings, _ in self.recorded)
        if columns > recorded:
            raise ValueError(
                f"crop: tokens_to_remove is {-columns}; expected at least {-recorded}, the columns that were recorded "
                "since the last crop (cache.activate_past_recording() before the call lets each call be forgotten)"
            )
        self._outdated |= self.state is not None and columns > 0
        if columns:
            if self.mask is not None:
                self.mask = self.mask[:, :-columns]
            self.width = max(self.width - columns, 0)
            if self.images is not None:
                self.images = self.images._replace(tokens=self.images.tokens[:, :-columns])
            before = _kept(self.recorded)
            self.recorded = _without_last(self.recorded, columns)
            if self.kept is not None:
                self.kept = self.kept - (before - _kept(self.recorded))
            self.prompt = _without_last(self.prompt, columns)
        self._settle()


def _begun_again(state: DecodeState, rows: Tensor) -> DecodeState:
    """The state with some rows [B] bool as they are before the first token, where all but the grids is zero."""

    def forgotten(name: str, tensor: Tensor) -> Tensor:
        if f".{PREFIX}" in f".{name}" and not name.endswith(SINCE):
            return tensor
        return tensor.masked_fill(rows.view(-1, *[1] * (tensor.dim() - 1)), 0)

    tensors = {name: forgotten(name, tensor) for name, tensor in state.tensors.items()}
    return DecodeState(tensors, state.length.masked_fill(rows, 0))


def _without_last(calls: list[Call], columns: int) -> list[Call]:
    """Return what is left of texts, a call each, without the last columns of them all."""
    calls = list(calls)
    while columns > 0 and calls:
        embeddings, mask = calls.pop()
        left = max(embeddings.shape[1] - columns, 0)
        columns -= embeddings.shape[1] - left
        if left:
            calls.append((embeddings[:, :left], None if mask is None else mask[:, :left]))
    return calls


def _kept(calls: list[Call]) -> Tensor | int:
    """Count the columns that the masks of texts keep, [B], or for all rows where there are no masks."""
    return sum((embeddings.shape[1] if mask is None else mask.sum(-1) for embeddings, mask in calls), 0)
