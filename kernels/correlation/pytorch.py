"""Token-grid correlation with the quicker exact selection."""

from torch import Tensor

from ..common.dtypes import compute_dtype
from ..common.grid_weights import grid_weights, largest_of_few_or_many


def correlation_context(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    top_k: int | None = None,
    *,
    grid_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    renormalize: bool = True,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """c = w v with w = mean over heads of top-k softmax(q.k / sqrt(D_h))."""
    dtype = compute_dtype(q, k, v)
    w = grid_weights(
        q,
        k,
        top_k,
        grid_mask=grid_mask,
        text_mask=text_mask,
        renormalize=renormalize,
        dropout_p=dropout_p,
        seed=seed,
        dtype=dtype,
        largest=largest_of_few_or_many,
    )
    if grid_mask is not None:
        v = v.masked_fill(~grid_mask[:, :, None], 0)
    return (w @ v.to(dtype)).to(v.dtype), w.to(q.dtype)
