"""Insert positions into padded rows so that each row stays in one piece, with all padding on its outside.

LFM2's short convolution sees through gaps: `[z, pad, text]` is another function than `[pad, z, text]`.
"""

from typing import NamedTuple

import torch


class Packed(NamedTuple):
    """Rows in one piece: `embeddings` [B,S,D], `mask` [B,S], and where each candidate column went, `places` [B,N]."""

    embeddings: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor


def trailing_padding(mask: torch.Tensor) -> torch.Tensor:
    """Count the False at the end of each row of mask [B,T]: [B]; 0 for a row without any True."""
    return mask.flip(-1).long().cumsum(-1).eq(0).sum(-1) * mask.any(-1)


def leading_padding(mask: torch.Tensor) -> torch.Tensor:
    """Count the False at the start of each row of mask [B,T]: [B]; T for a row without any True."""
    return mask.long().cumsum(-1).eq(0).sum(-1)


def check_prompts(mask) -> None:
    """Raise ValueError where `mask` [B,T], if there is one, drops the last position of a prompt to be answered."""
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and not bool(mask[:, -1:].bool().all()):
        raise ValueError(
            "generate: attention_mask pads a prompt on the right; expected padding on the left (processor(..., "
            "padding=True, padding_side='left')), since an answer follows its prompt without a hole"
        )


def has_hole(mask: torch.Tensor) -> torch.Tensor:
    """Return whether a row of mask [B,T] drops a position between two kept ones: [B]."""
    return leading_padding(mask) + mask.sum(-1) + trailing_padding(mask) != mask.shape[-1]


def pack(candidates: torch.Tensor, keep: torch.Tensor, text_mask: torch.Tensor) -> Packed:
    """Keep the kept candidates of each row in their order, in one piece, padded as its text was.

    candidates [B,N,D], keep [B,N] bool, text_mask [B,T] bool: the padding of the row's own text, left, right or both.
    The width S is the least that leaves every row its own padding; what else a row lacks stands to its left.
    A candidate that is not kept gets the nearest place to its left among the kept ones (the first one if there is
    none), so that reading `places` never leaves the row.
    """
    tail = trailing_padding(text_mask)
    lead = leading_padding(text_mask)
    kept = keep.sum(-1)
    # In a graph no width may depend on what a mask holds: there it is that of all candidates, which is enough for any.
    width = candidates.shape[1] if torch.compiler.is_compiling() else int((lead + kept + tail).max())
    first = width - tail - kept
    rank = (keep.long().cumsum(-1) - 1).clamp(min=0)
    places = (first[:, None] + rank).clamp(max=width - 1)

    # Candidates that are dropped are scattered into one column beyond the end, which is cut off again.
    target = torch.where(keep, places, width)
    order = torch.arange(candidates.shape[1], device=candidates.device).expand_as(places)
    source = torch.zeros(candidates.shape[0], width + 1, dtype=torch.long, device=candidates.device)
    source = source.scatter(1, target, order)[:, :width]
    columns = torch.arange(width, device=candidates.device)
    mask = (columns >= first[:, None]) & (columns < (first + kept)[:, None])
    embeddings = candidates.gather(1, source[..., None].expand(-1, -1, candidates.shape[-1]))
    return Packed(embeddings * mask[..., None].to(embeddings.dtype), mask, places)


def kept_columns(hidden: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """Return the columns of hidden [B,T,D] that get logits, as models of transformers take it.

    logits_to_keep: how many at the end (0: all); an index [n] for all rows; an index [B,n] for each row; or a mask
    [B,T] bool, which gives [n,D].
    """
    if isinstance(logits_to_keep, int):
        return hidden[:, slice(-logits_to_keep, None)]
    if logits_to_keep.dim() == 1:
        return hidden[:, logits_to_keep]
    if logits_to_keep.dtype == torch.bool:
        return hidden[logits_to_keep]
    return torch.take_along_dim(hidden, logits_to_keep[..., None], dim=1)
