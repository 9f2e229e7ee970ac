"""Arguments of every connector: their errors, and grids ready for their projections."""

import torch
from torch import Tensor

from ..kernels.checks import REAL, check_dtypes, check_shapes
from .positions import GridPositions, default_boxes
from .state import DecodeState


def check_text(owner: str, text: Tensor, text_mask: Tensor | None, width: int, dtype: torch.dtype) -> None:
    check_shapes(owner, text=(text, f"B T {width}"), text_mask=(text_mask, "B T"))
    check_dtypes(owner, (torch.bool,), text_mask=text_mask)
    check_floating(owner, "text", text, dtype)


def check_floating(owner: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Check that an input has the dtype of the weights; under autocast, which casts, any real one. Raises TypeError."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{owner}: {name} is of type {type(tensor).__name__}; expected a tensor")
    if not tensor.is_floating_point() or (tensor.dtype != dtype and not _autocast(tensor.device)):
        raise TypeError(f"{owner}: {name} is {tensor.dtype}; expected {dtype}, the dtype of the weights")


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
    grid_times: Tensor | None,
    *,
    batch: int | None = None,
    width: int,
    dtype: torch.dtype,
    positions: GridPositions | None,
) -> Tensor:
    """Grids [B,G,D_v] with their positions added (if there are `positions`), zero where masked.

    `batch` is the expected number of rows, if known. Features, boxes and times under the mask are never read. Boxes,
    image numbers and times are checked even where no positions need them.
    """
    check_shapes(
        owner,
        None if batch is None else {"B": batch},
        grids=(grids, f"B G {width}"),
        grid_mask=(grid_mask, "B G"),
        grid_boxes=(grid_boxes, "B G 4"),
        grid_images=(grid_images, "B G"),
        grid_times=(grid_times, "B G"),
    )
    check_dtypes(owner, (torch.bool,), grid_mask=grid_mask)
    check_dtypes(owner, (torch.int64, torch.int32), grid_images=grid_images)
    check_dtypes(owner, REAL, grid_times=grid_times)
    check_floating(owner, "grids", grids, dtype)
    if positions is None:
        return without_masked(grids, grid_mask)
    if grid_boxes is None:
        for name, given in (("grid_images", grid_images), ("grid_times", grid_times)):
            if given is not None:
                raise ValueError(f"{owner}: grid_boxes is None; expected boxes [B, G, 4] where {name} is given")
        grid_boxes = default_boxes(grids.shape[1], grids.device).expand(grids.shape[0], -1, -1)
    if grid_times is not None and grid_mask is not None:
        grid_times = grid_times.masked_fill(~grid_mask, 0)
    kept = (without_masked(grids, grid_mask), without_masked(grid_boxes, grid_mask))
    placed = positions(*kept, grid_images, grid_times)
    return without_masked(placed, grid_mask)


def check_prefill(owner: str, text: Tensor, grids: Tensor | None, state: DecodeState | None) -> None:
    """Check that exactly one of grids and state is given, with as many rows as the text; raises ValueError."""
    if (grids is None) == (state is None):
        found = "None" if grids is None else "given"
        raise ValueError(f"{owner}: grids and state are both {found}; expected one of them (a state has its grids)")
    if grids is not None and grids.shape[:1] != text.shape[:1]:
        raise ValueError(
            f"{owner}: grids has shape {list(grids.shape)}; expected {text.shape[0]} rows, as many as text"
        )
    if state is not None and state.batch_size != text.shape[0]:
        raise ValueError(f"{owner}: state has {state.batch_size} rows; expected {text.shape[0]}, as many as text")


def token_as_text(owner: str, token: Tensor, width: int, dtype: torch.dtype, state: DecodeState) -> Tensor:
    """The token [B,D] or [B,1,D] of a step as text [B,1,D]."""
    text = token.unsqueeze(1) if token.ndim == 2 else token
    if text.ndim != 3 or text.shape[1] != 1 or text.shape[2] != width:
        raise ValueError(f"{owner}: token has shape {list(token.shape)}; expected [B, {width}] or [B, 1, {width}]")
    check_floating(owner, "token", token, dtype)
    if state.batch_size != text.shape[0]:
        raise ValueError(f"{owner}: state has {state.batch_size} rows; expected {text.shape[0]}, as many as token")
    return text
