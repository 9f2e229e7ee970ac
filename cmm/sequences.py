"""Sequences packed one after the other into one row, of which none sees another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..kernels.checks import check_dtypes, check_shapes


class Sequences:
    """Borders of S sequences in a row of T positions.

    cu_seqlens   [S+1] int32 or int64, where a sequence begins and where the last one ends: from 0 to T, never
                 decreasing; equal ones are an empty sequence
    lengths      how many positions each has, on the host
    index        [T] int64, the number of each position's sequence
    position     [T] int64, the number of each position in its sequence
    """

    def __init__(self, cu_seqlens: Tensor, lengths: list[int]):
        self.cu_seqlens = cu_seqlens
        self.lengths = lengths
        count = torch.arange(len(lengths), device=cu_seqlens.device)
        steps = cu_seqlens.diff().long()
        self.index = torch.repeat_interleave(count, steps, output_size=sum(lengths))
        starts = cu_seqlens[:-1].long()
        self.position = torch.arange(sum(lengths), device=cu_seqlens.device) - starts[self.index]

    @classmethod
    def of(cls, owner: str, cu_seqlens: Tensor | Sequences, x: Tensor, name: str = "cu_seqlens") -> Sequences:
        """The sequences of x [1,T,...]; borders come to its device. Their values are read, for which the host waits.

        `owner` and `name` are what errors name. Raises TypeError for a wrong dtype, and ValueError where there are
        several rows, or borders do not rise from 0 to T.
        """
        borders = cu_seqlens.cu_seqlens if isinstance(cu_seqlens, Sequences) else cu_seqlens
        check_shapes(owner, **{name: (borders, "borders")})
        check_dtypes(owner, (torch.int32, torch.int64), **{name: borders})
        if x.shape[0] != 1:
            raise ValueError(f"{owner}: {name} is given with {x.shape[0]} rows; expected one, with all sequences in it")
        known = isinstance(cu_seqlens, Sequences)
        ends = [0, *torch.tensor(cu_seqlens.lengths).cumsum(0).tolist()] if known else borders.tolist()
        if len(ends) < 2 or ends[0] != 0 or ends[-1] != x.shape[1] or ends != sorted(ends):
            raise ValueError(
                f"{owner}: {name} is {ends}; expected borders that rise from 0 to T = {x.shape[1]}, at least two"
            )
        if known and borders.device == x.device:
            return cu_seqlens
        return cls(borders.to(x.device), [end - first for first, end in itertools.pairwise(ends)])

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def with_gaps(self, x: Tensor, size: int) -> Tensor:
        """x [1,T,D] -> [1, T + S size, D]: `size` zeros before each sequence, which a short convolution starts from."""
        wide = x.new_zeros(1, x.shape[1] + len(self.lengths) * size, x.shape[2])
        return wide.index_copy(1, self._places(size), x)

    def without_gaps(self, x: Tensor, size: int) -> Tensor:
        """`with_gaps` undone."""
        return x.index_select(1, self._places(size))

    def _places(self, size: int) -> Tensor:
        return torch.arange(len(self.index), device=self.index.device) + (self.index + 1) * size

    def rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [1,T,D] -> (rows [S,T',D] padded with zeros on the right, their mask [S,T'] bool), without empty ones."""
        lengths = [length for length in self.lengths if length]
        rows = pad_sequence(list(x[0].split(lengths)), batch_first=True)
        ends = torch.tensor(lengths, device=x.device)
        return rows, torch.arange(rows.shape[1], device=x.device) < ends[:, None]


def by_sequence(
    sequences: Sequences | None, run: Callable[..., Any], tokens: Sequence[Tensor], grids: Sequence[Tensor | None]
) -> Any:
    """`run(*tokens, *grids)`, where each sequence has grids of its own, and none sees those of another.

    tokens [1,T,...] are cut into sequences, grids [S,...] into rows; results [1,T,...] are put together again. It is
    one call where there are no sequences: tokens [B,T,...], grids [B,...].
    """
    if sequences is None:
        return run(*tokens, *grids)
    count = len(sequences.lengths)
    cut = [x.split(sequences.lengths, 1) for x in tokens]
    cut += [[None] * count if x is None else x.split(1) for x in grids]
    found = [run(*parts) for length, *parts in zip(sequences.lengths, *cut) if length]
    if isinstance(found[0], Tensor):
        return torch.cat(found, 1)
    return tuple(torch.cat(parts, 1) for parts in zip(*found))
