"""Images of a batch one after the other, and how many of them each row has."""

import torch
from torch import Tensor


def places_in_rows(owner: str, counts: Tensor | None, images: int) -> tuple[Tensor, Tensor]:
    """Return the row of each image and its place among that row's images, [n] int64 each, on the CPU.

    counts [B]: how many of the n images each row has, in their order, `pixel_attention_mask` of packed inputs.

    Raises ValueError, in the name of `owner`, where they are not given or are not n together.
    """
    if counts is None:
        raise ValueError(
            f"{owner}: pixel_attention_mask is not given with image_position_ids; expected [B], how many images each "
            "row has"
        )
    if counts.dim() != 1:
        raise ValueError(f"{owner}: pixel_attention_mask has shape {list(counts.shape)}; expected [B]")
    counts = counts.detach().cpu().long()
    if int(counts.sum()) != images or bool((counts < 0).any()):
        raise ValueError(
            f"{owner}: pixel_attention_mask is {counts.tolist()}; expected {images} together, the images of "
            "pixel_values"
        )
    rows = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return rows, torch.arange(images) - (counts.cumsum(0) - counts)[rows]


__all__ = ["places_in_rows"]
