"""Images of all rows one after the other, for trainers that pass on `pixel_values` and few other keys."""

import numpy as np
import torch
from torch import Tensor

from ..rows import places_in_rows

PACKED_NAMES = ("pixel_values", "image_position_ids", "pixel_attention_mask")


def packed_batch(rows: list[np.ndarray | None], counts: list[int]) -> dict[str, np.ndarray]:
    """Make the packed inputs of a batch: each row's images [n,3,S,S], and as how many frames they are shown together.

    An image that is shown as several equal frames is there once; see FoveatedImageProcessor.
    """
    images, spans = [], []
    for row, count in zip(rows, counts):
        if row is not None:
            each = count // len(row)
            images += list(row)
            spans += [(each * i, each * (i + 1)) for i in range(len(row))]
    numbers = [0 if row is None else len(row) for row in rows]
    arrays = np.stack(images), np.array(spans, dtype=np.int64), np.array(numbers, dtype=np.int64)
    return dict(zip(PACKED_NAMES, arrays))


def unpacked(images: Tensor, positions: Tensor | None, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Make frames [B,T,3,S,S] and their mask [B,T] of n images [n,3,S,S].

    positions [n,2]: the frames of its row, the end excluded, that each image is shown as. counts [B]: how many images
    each row has. Raises ValueError for other shapes, and for frames that are shown twice or not at all.
    """
    if positions is None:
        raise ValueError(
            "FoveatedVLM: image_position_ids is not given with pixel_values; expected [n,2], the frames that each "
            "image is shown as, which the image processor makes with packed=True"
        )
    if images.dim() != 4 or tuple(positions.shape) != (len(images), 2):
        raise ValueError(
            f"FoveatedVLM: image_position_ids has shape {list(positions.shape)} and pixel_values {list(images.shape)}; "
            "expected [n,2] and [n,3,S,S] of n images"
        )
    rows, order = places_in_rows("FoveatedVLM", counts, len(images))
    first, end = positions.detach().cpu().long().unbind(1)
    before = torch.cat([end.new_zeros(1), end[:-1]])
    if bool((first != torch.where(order == 0, 0, before)).any() | (end <= first).any()):
        raise ValueError(
            f"FoveatedVLM: image_position_ids is {positions.tolist()}; expected the frames of each row one after "
            "another"
        )
    assert counts is not None  # since `places_in_rows`
    # With no image at all there is one frame, which no row has.
    longest = max(int(end.max()) if len(end) else 1, 1)
    mask = torch.zeros(len(counts), longest, dtype=torch.bool)
    frames = images.new_zeros(len(counts), longest, *images.shape[1:])
    shown = torch.repeat_interleave(torch.arange(len(images)), end - first)
    columns = torch.arange(len(shown)) - torch.repeat_interleave((end - first).cumsum(0) - end, end - first)
    frames[rows[shown], columns] = images[shown]
    mask[rows[shown], columns] = True
    return frames, mask.to(images.device)


__all__ = ["PACKED_NAMES", "packed_batch", "unpacked"]
