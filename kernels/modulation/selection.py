"""Selection of the grids that a token sees, as one value from the public functions down to the kernels."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import REAL, check_dtypes, check_integer, check_shapes
from ..common.random import new_seed


class Selection(NamedTuple):
    """The arguments of an op that select grids, in the order in which the registered ops have them.

    B rows of T tokens and G grids; masks are bool, True = keep.
    """

    top_k: int | None = None
    """How many grids each head of a token keeps; None and 0: all."""
    grid_mask: Tensor | None = None
    """[B,G]"""
    text_mask: Tensor | None = None
    """[B,T]"""
    renormalize: bool = True
    """Whether the softmax is over the kept scores alone."""
    dropout_p: float = 0.0
    seed: Tensor | None = None
    """int64, one element; counts where dropout_p > 0."""

    def check(self, op: str, q: Tensor, k: Tensor) -> None:
        """Raise the errors of these arguments, with queries [B,T,H,D_h] and keys [B,G,H,D_h], in the name of `op`."""
        seed = self.seed
        check_shapes(
            op,
            q=(q, "B T H D_h"),
            k=(k, "B G H D_h"),
            grid_mask=(self.grid_mask, "B G"),
            text_mask=(self.text_mask, "B T"),
            seed=(seed.reshape(-1) if isinstance(seed, Tensor) else seed, "1"),
        )
        check_dtypes(op, REAL, q=q, k=k)
        check_dtypes(op, (torch.bool,), grid_mask=self.grid_mask, text_mask=self.text_mask)
        check_dtypes(op, (torch.int64,), seed=seed)
        if self.top_k is not None:
            check_integer(op, "top_k", self.top_k, at_least=0)
        if not 0 <= self.dropout_p < 1:
            raise ValueError(f"{op}: dropout_p is {self.dropout_p}; expected 0 <= dropout_p < 1")

    def settled(self, device: torch.device) -> "Selection":
        """Replace top_k None by 0, and draw the seed from torch's generator if dropout needs one."""
        needs_seed = self.dropout_p > 0 and self.seed is None
        return self._replace(top_k=self.top_k or 0, seed=new_seed(device) if needs_seed else self.seed)
