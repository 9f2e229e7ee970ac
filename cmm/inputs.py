"""What every connector is called with: the argument errors, and grids ready for their projections."""

import torch
from torch import Tensor

from ..kernels.checks import check_dtypes, check_shapes
from .positions import GridPositions, default_boxes
from .state import DecodeState


def check_text(owner: str, text: Tensor, text_mask: Tensor | None, width: int, dtype: torch.dtype) -> None:
    check_shapes(owner, text=(text, f"B T {width}"), text_mask=(text_mask, "B T"))
    check_dtypes(owner, (torch.bool,), text_mask=text_mask)
    check_floating(owner, "text", text, dtype)


def check_floating(owner: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """An input of another dtype than the weights is an error, except under autocast, whose business that is."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{owner}: {name} is a {type(tensor).__name__}; a tensor is wanted")
    if not tensor.is_floating_point() or (tensor.dtype != dtype and not _autocast(tensor.device)):
        raise TypeError(f"{owner}: {name} is {tensor.dtype}; wanted {dtype}, the dtype of the weights")


def _autocast(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def without_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """x [B,T,D], zero outside of mask [B,T]."""
    return x if mask is None else x.masked_fill(~mask[..., None], 0)


def prepared_grids(
    owner: str,
    grids: Tensor,
    grid_mask: Tensor | None,
    grid_boxes: Tensor | None,
    grid_images: Tensor | None,
    *,
    batch: int | None = None,
    width: int,
    dtype: torch.dtype,
    positions: GridPositions | None,
) -> Tensor:
    """Grids [B,G,D_v] with their positions added (if there are `positions`), zero where masked.

    `batch` is how many rows are wanted, if that is known. What lies under the mask, features and boxes alike, is never
    read. Boxes and image numbers are checked even where
    no positions want them.
    """
    check_shapes(
        owner,
        None if batch is None else {"B": batch},
        grids=(grids, f"B G {width}"),
        grid_mask=(grid_mask, "B G"),
        grid_boxes=(grid_boxes, "B G 4"),
        grid_images=(grid_images, "B G"),
    )
    check_dtypes(owner, (torch.bool,), grid_mask=grid_mask)
    check_dtypes(owner, (torch.int64, torch.int32), grid_images=grid_images)
    check_floating(owner, "grids", grids, dtype)
    if positions is None:
        return without_masked(grids, grid_mask)
    if grid_boxes is None:
        if grid_images is not None:
            raise ValueError(f"{owner}: grid_boxes is None with grid_images given; boxes [B, G, 4] are wanted")
        grid_boxes = default_boxes(grids.shape[1], grids.device).expand(grids.shape[0], -1, -1)
    placed = positions(without_masked(grids, grid_mask), without_masked(grid_boxes, grid_mask), grid_images)
    return without_masked(placed, grid_mask)


def check_prefill(owner: str, text: Tensor, grids: Tensor | None, state: DecodeState | None) -> None:
    """Exactly one of grids and state brings the grid side, with as many rows as the text."""
    if (grids is None) == (state is None):
        found = "both are None" if grids is None else "both are given"
        raise ValueError(f"{owner}: grids or state is wanted, {found}; with a state the grids come from it")
    if grids is not None and grids.shape[:1] != text.shape[:1]:
        raise ValueError(f"{owner}: grids has shape {list(grids.shape)}; wanted {text.shape[0]} rows, as many as text")
    if state is not None and state.batch_size != text.shape[0]:
        raise ValueError(f"{owner}: state has {state.batch_size} rows; wanted {text.shape[0]}, as many as text")


def token_as_text(owner: str, token: Tensor, width: int, dtype: torch.dtype, state: DecodeState) -> Tensor:
    """The token [B,D] or [B,1,D] of a step as text [B,1,D]."""
    text = token.unsqueeze(1) if token.ndim == 2 else token
    if text.ndim != 3 or text.shape[1] != 1 or text.shape[2] != width:
        raise ValueError(f"{owner}: token has shape {list(token.shape)}; wanted [B, {width}] or [B, 1, {width}]")
    check_floating(owner, "token", token, dtype)
    if state.batch_size != text.shape[0]:
        raise ValueError(f"{owner}: state has {state.batch_size} rows; wanted {text.shape[0]}, as many as token")
    return text
