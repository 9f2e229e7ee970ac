"""Base class of the connectors: whole sequences, grids once per prompt, pieces of a text, single tokens."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from ..kernels.checks import check_dtypes, check_integer, check_shapes
from .block import check_unmasked
from .config import MODULATOR_FIELDS, CMMConfig, check_defaults
from .inputs import check_prefill, check_text, prepared_grids, token_as_text
from .positions import GridPositions
from .sequences import Sequences
from .state import DecodeState

PREFIX = "grid."


@dataclass
class GridSide:
    """Part of a connector that depends on the grids alone, computed once per prompt.

    mask   [B,G] bool, True = keep; None where all are kept
    since  [B,G] int64, the tokens of its row that came before a grid, and so have not seen it; None: none did

    A connector's own side adds what it reads of the grids, [B,G,...], or, named in `of_all`, of all of them alike. A
    field that is None is not there.
    """

    of_all: ClassVar[tuple[str, ...]] = ()

    mask: Tensor | None
    since: Tensor | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, state: DecodeState) -> Self:
        """The grid side in a state, whose tensors are named "grid." and the field.

        Raises ValueError for a state of another layer.
        """
        found = {name[len(PREFIX) :]: kept for name, kept in state.tensors.items() if name.startswith(PREFIX)}
        try:
            return cls(**found)
        except TypeError:  # looked into only then: torch.compile cannot list the fields of a class
            known = {each.name for each in fields(cls)}
            needed = {each.name for each in fields(cls) if each.default is MISSING}
            raise ValueError(
                f"{cls.__name__}: state has {sorted(found)} of the grids; expected {sorted(needed)} and no others but "
                f"{sorted(known - needed)}, as a state of this layer or connector has"
            ) from None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a state with this grid side, the inverse of `of`."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {PREFIX + name: tensor for name, tensor in named if tensor is not None}

    def repeated(self, times: int) -> Self:
        """This side with each row so many times, one after another."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self))
        return replace(self, **{name: one.repeat_interleave(times, 0) for name, one in named if one is not None})

    def joined(self, new: Self) -> Self:
        """This side with the grids of another after its own; both have the same fields."""
        pairs = ((each.name, getattr(self, each.name), getattr(new, each.name)) for each in fields(self))
        joined = {
            name: torch.cat([mine, its], 1) for name, mine, its in pairs if mine is not None and name not in self.of_all
        }
        return replace(self, **joined)


class Prompt(NamedTuple):
    """Question about the grids: its embeddings [B,P,D_t] and which of them are there, [B,P] bool or None for all."""

    text: Tensor
    mask: Tensor | None


class GivenGrids(NamedTuple):
    """Grids [B,G,D_v] as a caller gives them, with their mask, boxes, images and times, as in `Connector.forward`."""

    x: Tensor
    mask: Tensor | None = None
    boxes: Tensor | None = None
    images: Tensor | None = None
    times: Tensor | None = None


class Whole(NamedTuple):
    """Whole sequences as `Connector.forward` is given them, packed `sequences` known by their borders."""

    text: Tensor
    text_mask: Tensor | None
    grids: GivenGrids
    prompt_mask: Tensor | None = None
    sequences: Sequences | None = None
    times: int = 1
    """How many rows of text share one of the grids."""


class PlacedGrids(NamedTuple):
    """Grids [B,G,D_v] with their positions added, zero where masked, and what was given beside them."""

    x: Tensor
    mask: Tensor | None
    boxes: Tensor | None
    images: Tensor | None
    times: Tensor | None
    prompt: Prompt | None


Side = TypeVar("Side", bound=GridSide)
After = TypeVar("After", DecodeState, None)


class Connector(nn.Module, ABC, Generic[Side]):
    """Text embeddings in, text embeddings out, each having seen the grids.

    `forward`, `prefill` and `step` are one function in three modes: `prefill` in any number of pieces followed by
    `step`s gives what `forward` gives on the whole; `encode_grids` does what depends on the grids alone, and
    `add_grids` brings more of them into a conversation that has begun.

    Masks are bool, True = keep. A masked text position does not exist: no token sees it, and its output is 0. Nothing
    under a mask is read.

    A subclass says what it makes of the grids (`_side_of`) and of the text (`_connect`), and, where its tokens see
    those before them, how (`_mix`, `_mix_piece`, `_mix_token`).
    """

    inserts_grids = False
    """Whether the grids stand in the output, before the text."""
    places_images = False
    """Whether they are one for each image, to be put where the text has a token for it."""
    weighs_grids = True
    """Whether there are weights to return."""
    reads_prompt = False
    """Whether what is made of the grids depends on the prompt, all of which is then given with them."""
    packs = False
    """Whether it takes sequences packed into one row."""
    balances = False
    """Whether `forward` takes return_balance, and returns a loss of its own beside its output."""
    modulates = False
    """Whether it has a choice of query, layers and start."""
    side_class: type[Side]

    def __init__(self, config: CMMConfig):
        super().__init__()
        if not self.modulates:
            check_defaults(type(self).__name__, config, MODULATOR_FIELDS, "as a modulator alone has another")
        self.config = config
        self.positions = GridPositions(config.grid_width, config.grid_times) if config.grid_positions else None

    def reset_parameters(self) -> None:
        """Initialise this layer and everything in it anew."""
        for child in cast("Iterator[Any]", self.children()):  # each of them can, which nn.Module does not say
            child.reset_parameters()

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, and so of text and grids."""

    @abstractmethod
    def _side_of(self, seen: PlacedGrids, tokens: int | None) -> Side:
        """The grid side, for `tokens` text tokens in each row (None: not known)."""

    @abstractmethod
    def _connect(
        self,
        text: Tensor,
        text_mask: Tensor | None,
        side: Side,
        mix: Callable[..., tuple[Tensor, After]],
        sequences: Sequences | None = None,
    ) -> tuple[Tensor, Tensor | None, After]:
        """The layer in any of its modes: y, w [B,T,G] where it weighs grids, and what `mix` returned beside its output.

        `mix` [B,T,D_t] -> [B,T,D_t] lets tokens see those before them, and is called once; where several parts of a
        layer do, once for each, with the part's name. Of `sequences` packed into text [1,T,D_t] each has a row of the
        grid side.
        """

    def forward(
        self,
        text: Tensor,
        grids: Tensor | None = None,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
        grid_times: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        return_weights: bool = False,
        cu_seqlens: Tensor | Sequences | None = None,
        shared: bool = False,
        state: DecodeState | None = None,
        history: int = 0,
        mode: Literal["whole", "piece", "token"] = "whole",
    ) -> Any:
        """Run over whole sequences.

        Arguments:
            text: embeddings [B,T,D_t].
            grids: [B,G,D_v], any G.
            text_mask, grid_mask: [B,T] and [B,G] bool, True = keep.
            grid_boxes: [B,G,4], y0, x0, y1, x1 in 0..1 of the image. None: the global view and n x n tiles.
            grid_images: [B,G] integers, which image of the row a grid is of; None: all of image 0. Frames of one video
                are of one image.
            grid_times: [B,G] seconds, when the frame that a grid is of was to be seen; None: 0, as of an image. Read
                with `config.grid_times`.
            prompt_mask: [B,T] bool, the question, where the connector `reads_prompt`; None: all of the text.
            return_weights: return w too.
            cu_seqlens: borders [S+1], int32 or int64, of S sequences packed into the one row of text, from 0 to T and
                never decreasing; grids then are [S,G,D_v], those of each sequence, and so is what is given with them.
                Each sequence gives what it gives as a row of its own. Where the connector `packs`, without text_mask.
            shared: grids, and what is given with them, have S rows, each of which is that of B / S rows of text, one
                after another, as of several questions about an image: what depends on grids alone is computed once.
            state, history, mode: of `prefill` and `step`, which are calls of the module in the modes "piece" and
                "token", so that what stands around it (hooks, sharding, offloading) stands around them too.

        Returns: y [B,T,D_t] in the dtype of text, or (y, w [B,T,G]). Raises ValueError or TypeError, which name the
        argument.
        """
        if mode == "token":
            return self._token(text, cast(DecodeState, state))
        self._check(text, text_mask, return_weights)
        if mode == "piece":
            check_prefill(type(self).__name__, text, grids, state)
            before = state
            if grids is not None:
                asked = self._prompt_in(text, text_mask, prompt_mask)
                read = {} if asked is None else {"prompt": asked.text, "prompt_mask": asked.mask}
                before = self.encode_grids(grids, grid_mask, grid_boxes, grid_images, grid_times=grid_times, **read)
            return self._piece(text, text_mask, cast(DecodeState, before), history, return_weights)
        given = GivenGrids(cast(Tensor, grids), grid_mask, grid_boxes, grid_images, grid_times)
        sequences = None if cu_seqlens is None else self._sequences(cu_seqlens, text, text_mask, given.x)
        times = self._times_shared(text, given.x, cu_seqlens) if shared else 1
        y, w, _ = self._whole(Whole(text, text_mask, given, prompt_mask, sequences, times))
        return (y, w) if w is not None and return_weights else y

    def _sequences(
        self, cu_seqlens: Tensor | Sequences, text: Tensor, text_mask: Tensor | None, grids: Tensor
    ) -> Sequences:
        """The sequences in text [1,T,D_t], which have the rows of `grids`. Raises ValueError or TypeError."""
        name = type(self).__name__
        if not self.packs:
            raise ValueError(
                f"{name}: cu_seqlens is given; expected None, as it puts grids before the text of each row"
            )
        sequences = Sequences.of(name, cu_seqlens, text)
        check_unmasked(name, "text_mask", text_mask)
        if isinstance(grids, Tensor) and grids.dim() == 3 and grids.shape[0] != len(sequences.lengths):
            raise ValueError(
                f"{name}: grids has {grids.shape[0]} rows; expected {len(sequences.lengths)}, one for each sequence "
                "between two of cu_seqlens"
            )
        return sequences

    def _whole(self, given: Whole) -> tuple[Tensor, Tensor | None, Side]:
        """y, w and the grid side of whole sequences."""
        text, text_mask, grids, prompt_mask, sequences, times = given
        prompt = self._prompt_in(text, text_mask, prompt_mask)
        rows, tokens = text.shape[:2] if sequences is None else (len(sequences.lengths), sequences.longest)
        side = self._side_of(self._placed(grids, prompt, rows // times), tokens)
        side = side if times == 1 else self._shared(side, times)
        mix = lambda x, *part: (self._mix(x, text_mask, *part, sequences=sequences), None)  # noqa: E731
        y, w, _ = self._connect(text, text_mask, side, mix, sequences)
        return y, w, side

    def _times_shared(self, text: Tensor, grids: Tensor, cu_seqlens: Tensor | Sequences | None) -> int:
        """The number of rows of text that share one of the grids. Raises ValueError."""
        name = type(self).__name__
        if cu_seqlens is not None or self.reads_prompt:
            why = "reads the prompt of each row" if self.reads_prompt else "is given cu_seqlens"
            raise ValueError(f"{name}: shared is True; expected False, as it {why}")
        check_shapes(name, grids=(grids, f"S G {self.config.grid_width}"))
        if not grids.shape[0] or text.shape[0] % grids.shape[0]:
            raise ValueError(
                f"{name}: grids has {grids.shape[0]} rows, which are shared; expected a divisor of {text.shape[0]}, "
                "the rows of text"
            )
        return text.shape[0] // grids.shape[0]

    def _shared(self, side: Side, times: int) -> Side:
        """The grid side with each row so many times, one after another."""
        return side.repeated(times)

    def _piece(
        self, text: Tensor, text_mask: Tensor | None, before: DecodeState, history: int, return_weights: bool
    ) -> tuple:
        """`prefill` after a state, that of the grids at the start."""
        side = self.side_class.of(before)
        y, w, after = self._connect(
            text, text_mask, side, lambda x, *part: self._mix_piece(x, text_mask, before, history, *part)
        )
        return (y, after, w) if w is not None and return_weights else (y, after)

    def _token(self, token: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        text = token_as_text(type(self).__name__, token, self.config.text_width, self.dtype, state)
        side = self.side_class.of(state)
        y, _, after = self._connect(text, None, side, lambda x, *part: self._mix_token(x, state, *part))
        return y.view(token.shape), after

    def encode_grids(
        self,
        grids: Tensor,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        grid_images: Tensor | None = None,
        *,
        grid_times: Tensor | None = None,
        prompt: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> DecodeState:
        """The grid side of the layer, computed once per prompt: a state that has seen no token, for `prefill`.

        Its tensors have the names of `side_class`'s fields, below "grid.", a second layer's below "second.". Where the
        connector `reads_prompt`, `prompt` [B,P,D_t] has the question's embeddings, those of prompt_mask [B,P].
        """
        asked = None if prompt is None else Prompt(prompt, prompt_mask)
        given = GivenGrids(grids, grid_mask, grid_boxes, grid_images, grid_times)
        side = _with_mask(self._side_of(self._placed(given, asked), None), grids)
        return DecodeState(side.tensors(), torch.zeros(grids.shape[0], dtype=torch.int64, device=grids.device))

    def add_grids(
        self,
        state: DecodeState,
        grids: Tensor,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        grid_images: Tensor | None = None,
        *,
        grid_times: Tensor | None = None,
    ) -> DecodeState:
        """Let the tokens after `state` see more grids [B,G',D_v], beside those that it has; arguments as in `forward`.

        Nothing of earlier tokens is computed again: what they gave, and left in the state, stays as it is. The new
        state says which tokens saw which grids, "grid.since" [B,G+G']: token n of a row, counted from 0, saw the grids
        with since <= n. Added one by one or together, before the same token, grids give the same.

        The new state has no history: tokens before the grids came cannot be forgotten. Raises ValueError where the
        connector's grids stand in the text.
        """
        before = self.side_class.of(state)
        placed = self._placed(GivenGrids(grids, grid_mask, grid_boxes, grid_images, grid_times), None, state.batch_size)
        new = _with_mask(self._added_side(placed, before), grids)
        new.since = state.length[:, None].expand(grids.shape[:2])
        if before.since is None:
            assert before.mask is not None  # of a state
            before.since = torch.zeros_like(before.mask, dtype=torch.int64)
        return DecodeState({**state.tensors, **before.joined(new).tensors()}, state.length)

    def _added_side(self, seen: PlacedGrids, before: Side) -> Side:
        """The side of grids that come later, with the fields of the one `before`."""
        return self._side_of(seen, None)

    @overload
    def prefill(
        self,
        text: Tensor,
        grids: Tensor | None = None,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
        grid_times: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        state: DecodeState | None = None,
        history: int = 0,
        return_weights: Literal[False] = False,
    ) -> tuple[Tensor, DecodeState]: ...

    @overload
    def prefill(
        self,
        text: Tensor,
        grids: Tensor | None = None,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
        grid_times: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        state: DecodeState | None = None,
        history: int = 0,
        return_weights: Literal[True],
    ) -> tuple[Tensor, DecodeState, Tensor]: ...

    def prefill(
        self,
        text: Tensor,
        grids: Tensor | None = None,
        text_mask: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        *,
        grid_images: Tensor | None = None,
        grid_times: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        state: DecodeState | None = None,
        history: int = 0,
        return_weights: bool = False,
    ) -> tuple[Tensor, DecodeState] | tuple[Tensor, DecodeState, Tensor]:
        """Run over the next T tokens of every row; arguments as in `forward`.

        Either `grids` start a sequence, or `state` (of `encode_grids`, `prefill` or `step`) continues one.
        `history` is how many of the last positions the new state can forget (`DecodeState.rollback`). Where the
        connector `reads_prompt`, the call with the grids has all of the prompt.

        Returns: (y [B,T,D_t], state), with return_weights (y, state, w).
        """
        return self(
            text,
            grids,
            text_mask,
            grid_mask,
            grid_boxes,
            grid_images=grid_images,
            grid_times=grid_times,
            prompt_mask=prompt_mask,
            return_weights=return_weights,
            state=state,
            history=history,
            mode="piece",
        )

    def step(self, token: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """Run over one token, [B,D_t] or [B,1,D_t], in time that does not depend on how many are before it.

        Returns: (y of the shape of token, the next state); `state` itself is not changed.
        """
        return self(token, state=state, mode="token")

    def _mix(self, x: Tensor, mask: Tensor | None, *, sequences: Sequences | None = None) -> Tensor:
        """Let the tokens of whole sequences x [B,T,D_t] see those before them; here they do not."""
        return x

    def _mix_piece(
        self, x: Tensor, mask: Tensor | None, state: DecodeState, history: int
    ) -> tuple[Tensor, DecodeState]:
        """`_mix` of the next tokens, and the state after them; here only lengths change."""
        return x, counted(state, x, mask, history)

    def _mix_token(self, x: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """`_mix` of one token [B,1,D_t], and the state after it."""
        return x, DecodeState(state.tensors, state.length + 1)

    def _check(self, text: Tensor, text_mask: Tensor | None, return_weights: bool) -> None:
        check_text(type(self).__name__, text, text_mask, self.config.text_width, self.dtype)
        if return_weights and not self.weighs_grids:
            raise ValueError(f"{type(self).__name__}: return_weights is True; expected False, as it weighs no grids")

    def _prompt_in(self, text: Tensor, text_mask: Tensor | None, prompt_mask: Tensor | None) -> Prompt | None:
        """The prompt, if it is read: the kept tokens of text [B,T,D_t] that are in prompt_mask [B,T]."""
        if not self.reads_prompt:
            return None
        name = type(self).__name__
        check_shapes(name, text=(text, "B T D_t"), prompt_mask=(prompt_mask, "B T"))
        check_dtypes(name, (torch.bool,), prompt_mask=prompt_mask)
        if prompt_mask is None or text_mask is None:
            return Prompt(text, text_mask if prompt_mask is None else prompt_mask)
        return Prompt(text, prompt_mask & text_mask)

    def _placed(self, given: GivenGrids, prompt: Prompt | None, batch: int | None = None) -> PlacedGrids:
        """Grids with their positions, for `batch` rows of text, if they are known."""
        x = prepared_grids(
            type(self).__name__,
            *given,
            batch=batch,
            width=self.config.grid_width,
            dtype=self.dtype,
            positions=self.positions,
        )
        return PlacedGrids(x, *given[1:], prompt)


def _with_mask(side: Side, grids: Tensor) -> Side:
    """A side as a state has it: its mask [B,G] is there."""
    if side.mask is None:
        side.mask = torch.ones(grids.shape[:2], dtype=torch.bool, device=grids.device)
    return side


def counted(state: DecodeState, text: Tensor, text_mask: Tensor | None, history: int) -> DecodeState:
    """The state after the positions of text [B,T,D], whose last `history` it can forget: only lengths change."""
    check_integer("prefill", "history", history, at_least=0)
    batch, T = text.shape[:2]
    kept = torch.ones(batch, T, dtype=torch.bool, device=text.device) if text_mask is None else text_mask
    length = state.length + kept.sum(1)
    if not min(history, T):
        return DecodeState(state.tensors, length)
    before = length[:, None] - kept.flip(1).cumsum(1)[:, :history]  # [B, h], the latest position first
    return DecodeState(state.tensors, length, {"length": before})
