"""The weights of grids for tokens (docs/mathematics.md, section 2), shared by correlation_context and grounded_film."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..checks import REAL, check_dtypes, check_given, check_integer, check_shapes
from .random import dropout

INFINITY = float("inf")


def check_grid_weights(
    op: str,
    q: Tensor,
    k: Tensor,
    top_k: int | None,
    *,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
) -> None:
    """The argument errors of `grid_weights`, in the name of the op `op`."""
    check_given(op, q=q, k=k)
    check_shapes(
        op,
        q=(q, "B T H D_h"),
        k=(k, "B G H D_h"),
        grid_mask=(grid_mask, "B G"),
        text_mask=(text_mask, "B T"),
        seed=(seed.reshape(-1) if isinstance(seed, Tensor) else seed, "1"),
    )
    check_dtypes(op, REAL, q=q, k=k)
    check_dtypes(op, (torch.bool,), grid_mask=grid_mask, text_mask=text_mask)
    check_dtypes(op, (torch.int64,), seed=seed)
    if top_k is not None:
        check_integer(op, "top_k", top_k, at_least=0)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{op}: dropout_p is {dropout_p}; wanted 0 <= dropout_p < 1")


def grid_weights(
    q: Tensor,
    k: Tensor,
    top_k: int | None,
    *,
    grid_mask: Tensor | None,
    text_mask: Tensor | None,
    renormalize: bool,
    dropout_p: float,
    seed: Tensor | None,
    dtype: torch.dtype,
    largest: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """w [B,T,G] = mean over heads of dropout(top-k softmax over grids of q.k / sqrt(D_h)), computed in `dtype`.

    `largest(scores, k)` selects exactly k entries of the last axis. What lies under a mask is never read: not in the
    value, not in the gradient, were it NaN. A row without a kept grid, or with scores of -inf alone, is zero.
    """
    if text_mask is not None:
        q = q.masked_fill(~text_mask[:, :, None, None], 0)
    if grid_mask is not None:
        k = k.masked_fill(~grid_mask[:, :, None, None], 0)
    scores = torch.einsum("bthd,bghd->bhtg", q.to(dtype), k.to(dtype)) / math.sqrt(q.shape[-1])
    if grid_mask is not None:
        scores = scores.masked_fill(~grid_mask[:, None, None, :], -INFINITY)

    selects = top_k and top_k < scores.shape[-1]
    if selects and renormalize:
        a = softmax_or_zero(scores.masked_fill(~largest(scores.detach(), top_k), -INFINITY))
    elif selects:
        a = softmax_or_zero(scores).masked_fill(~largest(scores.detach(), top_k), 0)
    else:
        a = softmax_or_zero(scores)

    if dropout_p > 0:
        a = dropout(a, dropout_p, seed)
    w = a.mean(1)
    return w if text_mask is None else w.masked_fill(~text_mask[:, :, None], 0)


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
    entries of -inf the set may differ: their weight is zero in any case.
    """
    G = scores.shape[-1]
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if k <= G - k:
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
    G = 1024, k = 512: 47, 445, 29.
    """
    if scores.numel() <= 1024:
        return largest_by_sort(scores, k)
    if min(k, scores.shape[-1] - k) <= 5:
        return largest_by_passes(scores, k)
    return largest_by_threshold(scores, k)
