"""All views of an image on one sheet, so that a trainer that keeps `pixel_values` keeps them all.

A sheet [3,H,W] has the global view at its top left, and the tiles beside it, column by column. Where each view lies on
it and which part of the image it shows travels as whole numbers, which no mixed precision rounds.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...views.cutting import ImageViews
from ..rows import places_in_rows

# What a packed batch consists of, beside the text: keys that trainers of the field pass on.
PACKED_NAMES = ("pixel_values", "image_position_ids", "pixel_attention_mask")
# Shapes of one view's whole numbers: on the sheet, in the image, and with videos of which one and when.
PLACES = ((2, 4), (3, 4))


def view_places(side: int, tile: int, tiles: int) -> np.ndarray:
    """Return where the views lie on a sheet, [1+tiles,4] int64 (y0, x0, y1, x1), the global view first."""
    in_column = max(side // tile, 1)
    corners = [(i % in_column * tile, side + i // in_column * tile) for i in range(tiles)]
    return np.array([(0, 0, side, side), *((y, x, y + tile, x + tile) for y, x in corners)], dtype=np.int64)


def packed_batch(
    rows: list[list[ImageViews]], side: int, tile: int, tiles: int, moments: list[tuple[int, float]] | None = None
) -> dict[str, np.ndarray]:
    """Make the packed inputs of a batch, with room for so many `tiles` on each sheet; see FireboltImageProcessor.

    moments: for each of the n images, where there are videos, which image or video of its row it is of, and its second.
    """
    places = view_places(side, tile, tiles)
    images = [views for row in rows for views in row]
    height, width = places[:, 2:].max(0)
    sheets = np.zeros((len(images), 3, height, width), dtype=np.float32)
    positions = np.full((len(images), 1 + tiles, 2, 4), -1, dtype=np.int64)
    for sheet, position, views in zip(sheets, positions, images):
        shown = [(0, 0, views.height, views.width), *views.boxes]
        for i, (view, (y0, x0, y1, x1), box) in enumerate(zip((views.whole, *views.tiles), places, shown)):
            sheet[:, y0:y1, x0:x1] = view
            position[i] = (y0, x0, y1, x1), box
    if moments is not None:
        third = np.where(positions[:, :, :1] < 0, positions[:, :, :1], 0)
        third[:, 0, 0, :2] = [(number, round(1000 * time)) for number, time in moments]
        positions = np.concatenate([positions, third], 2)
    counts = np.array([len(row) for row in rows], dtype=np.int64)
    return dict(zip(PACKED_NAMES, (sheets, positions, counts)))


class Unpacked(NamedTuple):
    """Views of packed inputs, as an image processor that does not pack makes them.

    pixel_values [B,I,3,S,S]; pixel_tiles [B,I,M,3,t,t]; tile_mask [B,I,M] and image_mask [B,I] bool; grid_boxes
    [B,I,1+M,4] float32; image_numbers [B,I] int64 and image_times [B,I] float32, None where there is no video
    """

    pixel_values: Tensor
    pixel_tiles: Tensor
    tile_mask: Tensor
    image_mask: Tensor
    grid_boxes: Tensor
    image_numbers: Tensor | None = None
    image_times: Tensor | None = None


def unpacked(sheets: Tensor, positions: Tensor, counts: Tensor | None) -> Unpacked:
    """Cut the views out of n sheets [n,3,H,W] again.

    positions [n,1+M,2,4]: (y0, x0, y1, x1) of each view on the sheet, and of what it shows in pixels of the image; the
    global view, which shows all of it, comes first; -1 where there is no view. With videos [n,1+M,3,4]: of the global
    view also the number of its image or video in the row, and milliseconds. counts [B]: the images of each row.

    Raises ValueError for other shapes, for views that are not on the sheet, for tiles of several sizes, and where a
    graph is exported.
    """
    if sheets.dim() != 4 or positions.dim() != 4 or len(positions) != len(sheets) or positions.shape[2:] not in PLACES:
        raise ValueError(
            f"FireboltModel: image_position_ids has shape {list(positions.shape)} and pixel_values "
            f"{list(sheets.shape)}; expected [n,1+M,2,4] and [n,3,H,W] of n images"
        )
    if torch.compiler.is_exporting():
        raise ValueError(
            "FireboltModel: image_position_ids is given to an export; expected the inputs of an image processor with "
            "packed=False, as a graph cannot cut where it does not know"
        )
    rows, order = places_in_rows("FireboltModel", counts, len(sheets))
    on_sheet, shown, *moments = positions.detach().cpu().long().unbind(2)
    there = (on_sheet >= 0).all(-1)
    _check_places(on_sheet, there, sheets.shape[-2:])
    assert counts is not None  # since `places_in_rows`
    lead = (len(counts), max(int(counts.max()), 1))
    globally = _cut(sheets, on_sheet[:, :1], there[:, :1])
    tiles = _cut(sheets, on_sheet[:, 1:], there[:, 1:])
    height, width = shown[:, 0, 2:].clamp(min=1).double().unbind(-1)
    boxes = shown / torch.stack([height, width, height, width], dim=-1)[:, None]
    boxes = torch.where(there[..., None], boxes, torch.tensor([0.0, 0, 1, 1], dtype=torch.float64)).float()

    made = [
        sheets.new_zeros(*lead, *globally.shape[2:]),
        sheets.new_zeros(*lead, *tiles.shape[1:]),
        torch.zeros(*lead, tiles.shape[1], dtype=torch.bool),
        torch.zeros(lead, dtype=torch.bool),
        torch.tensor([0.0, 0, 1, 1]).repeat(*lead, 1 + tiles.shape[1], 1),
    ]
    found = [globally[:, 0], tiles, there[:, 1:], there[:, 0], boxes]
    for moment in moments:
        made += [torch.zeros(lead, dtype=torch.int64), torch.zeros(lead)]
        found += [moment[:, 0, 0], moment[:, 0, 1] / 1000]
    for tensor, values in zip(made, found):
        tensor[rows, order] = values
    return Unpacked(*(tensor.to(sheets.device) for tensor in made))


def _check_places(on_sheet: Tensor, there: Tensor, sheet: torch.Size) -> None:
    """Raise ValueError where the views [n,V,4] that are `there` [n,V] cannot be cut out of a sheet of this size."""
    for name, places in (("global view", on_sheet[:, :1]), ("tile", on_sheet[:, 1:])):
        seen = places[there[:, :1] if name == "global view" else there[:, 1:]]
        if len((seen[:, 2:] - seen[:, :2]).unique(dim=0)) > 1:
            raise ValueError(f"FireboltModel: image_position_ids has a {name} of another size; expected one size")
    seen = on_sheet[there]
    inside = (seen[:, :2] < seen[:, 2:]).all() and (seen[:, 2:] <= torch.tensor(sheet)).all()
    if not (bool(inside) and bool(there[:, 0].all())):
        raise ValueError(
            f"FireboltModel: image_position_ids has a view that is not on a sheet of {list(sheet)}, or no global view; "
            "expected what the image processor makes with packed=True"
        )


def _cut(sheets: Tensor, places: Tensor, there: Tensor) -> Tensor:
    """Cut views of one size, those at `places` [n,V,4] that are `there` [n,V]: [n,V,3,h,w], 0 where there is none."""
    found = places[there]
    height, width = (found[0, 2:] - found[0, :2]).tolist() if len(found) else (1, 1)
    views = sheets.new_zeros(*there.shape, sheets.shape[1], height, width)
    for place in found.unique(dim=0):
        images, columns = ((places == place).all(-1) & there).nonzero(as_tuple=True)
        y0, x0, y1, x1 = place.tolist()
        views[images, columns] = sheets[images, :, y0:y1, x0:x1]
    return views


__all__ = ["PACKED_NAMES", "ImageViews", "Unpacked", "packed_batch", "unpacked", "view_places"]
