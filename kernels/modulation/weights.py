"""The weights of grids for tokens in PyTorch (docs/mathematics.md, section 2), with several exact ways to select."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..common.random import dropout
from ..symbolic import varies
from .selection import Selection

INFINITY = float("inf")
Largest = Callable[[Tensor, int], Tensor]
"""A function (scores, k) that is True for exactly k entries of the last axis, the k largest."""


def grid_weights(q: Tensor, k: Tensor, selection: Selection, *, dtype: torch.dtype, largest: Largest) -> Tensor:
    """Compute w [B,T,G] = mean over heads of dropout(top-k softmax over grids of q.k / sqrt(D_h)) in `dtype`.

    q is [B,T,H,D_h], k [B,G,H,D_h]. What lies under a mask is never read: not in the value, not in the gradient, were
    it NaN. A row without a kept grid, or with scores of -inf alone, is zero.
    """
    grid_mask, text_mask = selection.grid_mask, selection.text_mask
    if text_mask is not None:
        q = q.masked_fill(~text_mask[:, :, None, None], 0)
    if grid_mask is not None:
        k = k.masked_fill(~grid_mask[:, :, None, None], 0)
    scores = torch.einsum("bthd,bghd->bhtg", q.to(dtype), k.to(dtype)) / math.sqrt(q.shape[-1])
    if grid_mask is not None:
        scores = scores.masked_fill(~grid_mask[:, None, None, :], -INFINITY)
    a = top_k_softmax(scores, selection.top_k, selection.renormalize, largest)
    if selection.dropout_p > 0:
        if selection.seed is None:
            raise ValueError(
                "grid_weights: seed is None; expected an int64 tensor of one element, as dropout_p is above 0"
            )
        a = dropout(a, selection.dropout_p, selection.seed)
    w = a.mean(1)
    return w if text_mask is None else w.masked_fill(~text_mask[:, :, None], 0)


def top_k_softmax(scores: Tensor, top_k: int | None, renormalize: bool, largest: Largest) -> Tensor:
    """Compute the softmax over the `top_k` largest of the last axis, or, not renormalised, over all, the rest zeroed.

    top_k None or 0: over all.
    """
    grids = scores.shape[-1]
    if not top_k or (not varies(grids) and top_k >= grids):
        return softmax_or_zero(scores)
    chosen = largest(scores.detach(), top_k)
    if renormalize:
        return softmax_or_zero(scores.masked_fill(~chosen, -INFINITY))
    return softmax_or_zero(scores).masked_fill(~chosen, 0)


def softmax_or_zero(scores: Tensor) -> Tensor:
    """Softmax over the last axis; rows of nothing but -inf become zeros, and so do their gradients."""
    empty = (scores == -INFINITY).all(-1, keepdim=True)
    return scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0)


def largest_by_sort(scores: Tensor, k: int) -> Tensor:
    """True for exactly the k largest of the last axis; of equals, the one with the lower index comes first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order[..., :k], True)


def largest_by_passes(scores: Tensor, k: int) -> Tensor:
    """The same set by k passes of argmax, or by removing the G - k smallest, whichever is fewer passes.

    argmax and argmin promise the first of equals. Removal has to take the last of equals, hence the flip. Among
    entries of -inf the set may differ: their weight is zero in any case. Where G is open it is passes of argmax, which
    choose all of fewer than k.
    """
    G = scores.shape[-1]
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if varies(G) or k <= G - k:
        rest = scores.clone()
        for _ in range(k):
            index = rest.argmax(-1, keepdim=True)
            chosen.scatter_(-1, index, True)
            rest.scatter_(-1, index, -INFINITY)
        return chosen
    rest = scores.flip(-1)
    for _ in range(G - k):
        index = rest.argmin(-1, keepdim=True)
        chosen.scatter_(-1, index, True)
        rest.scatter_(-1, index, INFINITY)
    return ~chosen.flip(-1)


def largest_by_threshold(scores: Tensor, k: int) -> Tensor:
    """The same set from the k-th value: all above it, then of those equal to it the first ones until there are k."""
    threshold = scores.topk(k, dim=-1).values[..., -1:]
    above, equal = scores > threshold, scores == threshold
    return above | (equal & (equal.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def largest_of_few_or_many(scores: Tensor, k: int) -> Tensor:
    """The quickest of the three for the size.

    Measured on one CPU core: one token's worth of scores is sorted in 8 us, where passes take 10 to 20. 16384 rows of
    G = 5, k = 4: sort 1.2 ms, passes 0.5, threshold 1.2. 4096 rows of G = 256, k = 4: 37, 4.4, 6.4. 1024 rows of
    G = 1024, k = 512: 47, 445, 29. An exported graph does not sort: not every engine can, keeping the order of equals
    (ExecuTorch 1.5).
    """
    if varies(*scores.shape):
        return largest_by_passes(scores, k)
    if scores.numel() <= 1024 and not torch.compiler.is_exporting():
        return largest_by_sort(scores, k)
    if min(k, scores.shape[-1] - k) <= 5:
        return largest_by_passes(scores, k)
    return largest_by_threshold(scores, k)
