"""Base class of the state-space blocks: three ways to run one, masks, the state and its history."""

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.checks import REAL, check_dtypes, check_integer, check_shapes
from .compaction import Packing
from .linear import in_dtype_of, product
from .sequences import Sequences
from .state import DecodeState


class SSMBlock(nn.Module, ABC):
    """A causal map of [B, T, D] to [B, T, D] with three modes that agree to rounding.

    `forward` runs a whole sequence, `prefill` also returns the state after it (and can continue one), `step` takes one
    token. Positions outside `mask` (True = keep) do not exist: the output there is 0, and each row gives what its kept
    positions give alone; `forward` also takes sequences packed into one row. Half-precision inputs come back in their
    dtype; the recurrence runs in float32 or wider.

    A subclass says what its state consists of (`state_shapes`) and how it runs (`_run`, `_run_step`), which is inside a
    call of its `kernel`, whose parameters it reads.
    """

    kernel: Any
    """WideParameters, each block's own."""

    channels_first = False
    """Whether `forward` reads x best where it lies in memory as [B, D, T]; without a mask, which moves it."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        check_integer(type(self).__name__, "width", width, at_least=1)
        if not 0 <= dropout < 1:
            raise ValueError(f"{type(self).__name__}: dropout is {dropout}; expected 0 <= dropout < 1")
        self.width = width
        self.dropout = dropout

    @abstractmethod
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of one row, of the tensors in a state."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the recurrence and of its state: float32, or float64."""

    @abstractmethod
    def _run(
        self, x: Tensor, packing: Packing, state: dict[str, Tensor] | None, need_state: bool
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """x [B, T, D], kept positions packed to the left -> (y [B, T, D] packed alike, the state after each row).

        Of sequences packed into one row (`packing.sequences`) each runs alone; no state is given or asked for there.
        """

    @abstractmethod
    def _run_step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x [B, D] -> (y [B, D], the state after it)."""

    def forward(self, x: Tensor, mask: Tensor | None = None, *, cu_seqlens: Tensor | Sequences | None = None) -> Tensor:
        """x [B, T, D], mask [B, T] bool -> y [B, T, D]. Raises ValueError or TypeError where they do not fit.

        cu_seqlens [S + 1], int32 or int64, are the borders of sequences packed into one row (B = 1), from 0 to T and
        never decreasing: each gives what it gives alone. There is no mask then.
        """
        self._check(x, 3, mask)
        sequences = None
        if cu_seqlens is not None:
            sequences = Sequences.of(type(self).__name__, cu_seqlens, x)
            check_unmasked(type(self).__name__, "mask", mask)
        if x.shape[1] == 0:
            return x
        packing = Packing(mask, x, sequences)
        y, _ = self.kernel(lambda: self._run(packing.left(x), packing, None, need_state=False))
        return packing.restore(y.to(x.dtype))

    def prefill(
        self, x: Tensor, mask: Tensor | None = None, state: DecodeState | None = None, *, history: int = 0
    ) -> tuple[Tensor, DecodeState]:
        """x [B, T, D] -> (y [B, T, D], the state after it), starting from nothing or continuing `state`.

        With `history` the returned state can be rolled back by up to so many positions of this call (masked ones
        counted); those take steps, so that the state before each of them is known.
        """
        self._check(x, 3, mask)
        self._check_state(x, state)
        check_integer(type(self).__name__, "history", history, at_least=0)
        T = x.shape[1]
        whole = T - min(history, T)
        mask_of = lambda positions: None if mask is None else mask[:, positions]  # noqa: E731
        outputs = []
        if whole:
            y, state = self._prefill(x[:, :whole], mask_of(slice(whole)), state)
            outputs.append(y)
        elif state is None:
            state = self.initial_state(x.shape[0], x.device)
        state = state.without_history()
        before = []  # the state before each of the last positions
        for t in range(whole, T):
            before.append({**state.tensors, "length": state.length})
            y, state = self._masked_step(x[:, t], mask_of(t), state)
            outputs.append(y.unsqueeze(1))
        if before:
            past = {name: torch.stack([earlier[name] for earlier in reversed(before)], 1) for name in before[0]}
            state = DecodeState(state.tensors, state.length, past)
        return (torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0] if outputs else x), state

    def step(self, x: Tensor, state: DecodeState) -> tuple[Tensor, DecodeState]:
        """x [B, D] -> (y [B, D], the state after it); the given state is not changed. O(1) in the tokens seen."""
        self._check(x, 2)
        self._check_state(x, state)
        return self._masked_step(x, None, state)

    def initial_state(self, batch_size: int, device: torch.device | None = None) -> DecodeState:
        """The state before the first token."""
        device = device or next(self.parameters()).device
        tensors = {
            name: torch.zeros(batch_size, *shape, dtype=self.dtype, device=device)
            for name, shape in self.state_shapes().items()
        }
        return DecodeState(tensors, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def _prefill(self, x: Tensor, mask: Tensor | None, state: DecodeState | None) -> tuple[Tensor, DecodeState]:
        packing = Packing(mask, x)
        before = None if state is None else state.tensors
        y, tensors = self.kernel(lambda: self._run(packing.left(x), packing, before, need_state=True))
        assert tensors is not None  # it was asked for
        length = packing.lengths if state is None else state.length + packing.lengths
        return packing.restore(y.to(x.dtype)), DecodeState(tensors, length)

    def _masked_step(self, x: Tensor, mask: Tensor | None, state: DecodeState) -> tuple[Tensor, DecodeState]:
        y, tensors = self.kernel(lambda: self._run_step(x, state.tensors))
        y = y.to(x.dtype)
        if mask is None:
            return y, DecodeState(tensors, state.length + 1)
        tensors = {name: where_rows(mask, tensors[name], state.tensors[name]) for name in tensors}
        return where_rows(mask, y, torch.zeros_like(y)), DecodeState(tensors, state.length + mask)

    def _check(self, x: Tensor, axes: int, mask: Tensor | None = None) -> None:
        owner = type(self).__name__
        check_shapes(owner, x=(x, f"B T {self.width}" if axes == 3 else f"B {self.width}"), mask=(mask, "B T"))
        check_dtypes(owner, REAL, x=x)
        check_dtypes(owner, (torch.bool,), mask=mask)
        if x.dtype == torch.float64 and self.dtype != torch.float64:
            raise TypeError(f"{owner}: x is float64; expected {self.dtype}, as the parameters; or call .double() first")

    def _check_state(self, x: Tensor, state: DecodeState | None) -> None:
        if state is None:
            return
        owner = type(self).__name__
        if state.batch_size != x.shape[0]:
            raise ValueError(f"{owner}: state has {state.batch_size} rows; expected {x.shape[0]}, as many as x")
        found = {name: tuple(tensor.shape[1:]) for name, tensor in state.tensors.items()}
        if found != self.state_shapes():
            raise ValueError(f"{owner}: state has {found} in each row; expected {self.state_shapes()}")


def where_rows(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of `new` where mask [B] is True, of `old` elsewhere."""
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def tied_dropout(x: Tensor, p: float, training: bool, sequences: Sequences | None = None) -> Tensor:
    """Dropout of x [B, T, D] with one mask for all times, so that a channel is there or not for a whole sequence."""
    if not training or p == 0:
        return x
    if sequences is None:
        return x * F.dropout(torch.ones_like(x[:, :1]), p)
    return x * F.dropout(x.new_ones(len(sequences.lengths), x.shape[-1]), p)[sequences.index]


class GatedSSMBlock(SSMBlock):
    """A block that mixes its channels by GELU, dropout, a pointwise Linear to 2 D and a gated linear unit.

    `output` is that Linear and nothing more: an adapter (peft) around it adds to 2 D channels, not to D.
    """

    channels_first = True

    def __init__(self, width: int, dropout: float):
        super().__init__(width, dropout)
        self.output = nn.Linear(width, 2 * width)

    def gated(self, y: Tensor, dtype: torch.dtype, sequences: Sequences | None = None) -> Tensor:
        """y [B, T, D], float32 or wider -> [B, T, D] in the dtype of the weights; in `dtype` where they are codes."""
        y = tied_dropout(F.gelu(y), self.dropout, self.training, sequences)
        return F.glu(product(self.output, in_dtype_of(self.output, y, dtype)), dim=-1)


def check_unmasked(owner: str, name: str, mask: Tensor | None) -> None:
    """Raise ValueError for a mask of packed sequences, which have no padding."""
    if mask is not None:
        raise ValueError(f"{owner}: {name} and cu_seqlens are both given; expected one of them")


def check_state_size(owner: str, state_size: int) -> None:
    """Check that states are of conjugate pairs; raises TypeError or ValueError."""
    check_integer(owner, "state_size", state_size, at_least=2)
    if state_size % 2:
        raise ValueError(f"{owner}: state_size is {state_size}; expected an even number")


def check_present(state_dict: dict[str, Tensor], names: list[str]) -> None:
    missing = [name for name in names if name not in state_dict]
    if missing:
        raise ValueError(
            f"original_parameters: {', '.join(missing)} is missing; expected {', '.join(names)}, as the original has"
        )
