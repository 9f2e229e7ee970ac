"""The grids of a batch: made of the views of its images, or given as they are."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .sheets import unpacked

PIXEL_ARGUMENTS = (
    *("pixel_values", "pixel_tiles", "tile_mask", "image_mask"),
    *("image_position_ids", "pixel_attention_mask"),
)
GRID_ARGUMENTS = ("grids", "grid_mask", "grid_boxes", "grid_images")


class Grids(NamedTuple):
    """Grids of a batch: `features` [B,G,D_v], `mask` [B,G] bool, `boxes` [B,G,4] or None, `images` [B,G] or None."""

    features: Tensor
    mask: Tensor
    boxes: Tensor | None
    images: Tensor | None

    @property
    def rows(self) -> Tensor:
        """Return the rows with at least one grid, [B] bool."""
        return self.mask.any(-1)


class Views(NamedTuple):
    """Views of I images in each row, a global view and M tiles of each, and which of them are there.

    images [B,I,3,S,S]; tiles [B,I,M,3,t,t] or None; image_mask [B,I] and tile_mask [B,I,M] bool; boxes [B,I,1+M,4]
    or None
    """

    images: Tensor
    tiles: Tensor | None
    image_mask: Tensor
    tile_mask: Tensor
    boxes: Tensor | None


def given_grids(
    grids: Tensor, grid_mask: Tensor | None, grid_boxes: Tensor | None, grid_images: Tensor | None, text: Tensor
) -> Grids:
    """Return the grids that a caller has, for text [B,T,D]. Raises ValueError where they are not of its rows."""
    if grids.dim() != 3 or grids.shape[0] != text.shape[0]:
        raise ValueError(f"FireboltModel: grids has shape {list(grids.shape)}; expected [{text.shape[0]}, G, D_v]")
    if grid_mask is None:
        grid_mask = torch.ones(grids.shape[:2], dtype=torch.bool, device=grids.device)
    return Grids(grids.to(text.dtype), grid_mask.bool(), grid_boxes, grid_images)


def named_grids(arguments: Mapping[str, Tensor | None], text: Tensor) -> Grids:
    """Return the grids among a caller's keyword arguments, as `given_grids` does."""
    grids = arguments["grids"]
    assert grids is not None
    return given_grids(
        grids, arguments.get("grid_mask"), arguments.get("grid_boxes"), arguments.get("grid_images"), text
    )


def views_of(
    pixel_values: Tensor,
    pixel_tiles: Tensor | None,
    tile_mask: Tensor | None,
    image_mask: Tensor | None,
    grid_boxes: Tensor | None,
    image_position_ids: Tensor | None,
    pixel_attention_mask: Tensor | None,
) -> Views:
    """Return the views of a batch, given as in `FireboltModel.get_grids`. Raises ValueError for other shapes."""
    if image_position_ids is not None:
        given = {"pixel_tiles": pixel_tiles, "tile_mask": tile_mask, "image_mask": image_mask, "grid_boxes": grid_boxes}
        if twice := [name for name, tensor in given.items() if tensor is not None]:
            raise ValueError(
                f"FireboltModel: {', '.join(twice)} and image_position_ids are both given; expected all views in "
                "pixel_values, or each kind in its own argument"
            )
        pixel_values, pixel_tiles, tile_mask, image_mask, grid_boxes = unpacked(
            pixel_values, image_position_ids, pixel_attention_mask
        )
    elif pixel_values.dim() == 4:
        pixel_values = pixel_values.unsqueeze(1)
        pixel_tiles, tile_mask, image_mask, grid_boxes = (
            tensor.unsqueeze(1) if tensor is not None else None
            for tensor in (pixel_tiles, tile_mask, image_mask, grid_boxes)
        )
    if pixel_values.dim() != 5:
        raise ValueError(
            f"FireboltModel: pixel_values has shape {list(pixel_values.shape)}; expected [B,3,S,S] or [B,I,3,S,S]"
        )
    if pixel_tiles is None and tile_mask is None:
        raise ValueError(
            "FireboltModel: pixel_tiles is not given with pixel_values; expected all views of an image, which whatever "
            "passed on pixel_values alone has dropped: let the image processor put them all there (packed=True). For "
            "global views alone, tile_mask is [B,0]"
        )
    batch_size, images = pixel_values.shape[:2]
    tiles = pixel_tiles.shape[2] if pixel_tiles is not None else 0
    if image_mask is None:
        image_mask = torch.ones(batch_size, images, dtype=torch.bool, device=pixel_values.device)
    if tile_mask is None:
        tile_mask = torch.ones(batch_size, images, tiles, dtype=torch.bool, device=pixel_values.device)
    wanted = {
        "image_mask": (image_mask, (batch_size, images)),
        "tile_mask": (tile_mask, (batch_size, images, tiles)),
        "pixel_tiles": (pixel_tiles, (batch_size, images, tiles)),
        "grid_boxes": (grid_boxes, (batch_size, images, 1 + tiles, 4)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape[: len(shape)]) != shape:
            raise ValueError(
                f"FireboltModel: {name} has shape {list(tensor.shape)}; expected {list(shape)}, to go with pixel_values"
            )
    image_mask = image_mask.bool()
    return Views(pixel_values, pixel_tiles, image_mask, tile_mask.bool() & image_mask[..., None], grid_boxes)


def rows_with_images(image_mask: Tensor | None, pixel_attention_mask: Tensor | None) -> Tensor | None:
    """Return which rows have an image, [B] bool, as `FireboltModel.get_grids` is told; None where it is not told."""
    if pixel_attention_mask is not None:
        return pixel_attention_mask > 0
    if image_mask is None or image_mask.dim() == 1:
        return image_mask if image_mask is None else image_mask.bool()
    return image_mask.bool().flatten(1).any(-1)


def encode_views(views: Views, pool: Callable[[Tensor], Tensor], width: int, dtype: torch.dtype) -> Grids:
    """Make one grid [D_v = width] of each view, zero where there is none.

    `pool` [n,3,S,S] -> [n,D_v] sees each size once. G = I (1 + M), image by image, the global view first.
    """
    batch_size, images, tiles = views.tile_mask.shape
    features = views.images.new_zeros(batch_size, images, 1 + tiles, width, dtype=dtype)
    if views.image_mask.any():
        whole = views.images[views.image_mask]
        parts = whole[:0]
        if views.tiles is not None and views.tile_mask.any():
            parts = views.tiles[views.tile_mask]
        if whole.shape[1:] == parts.shape[1:]:
            pooled = pool(torch.cat([whole, parts]))
            globally, rest = pooled[: len(whole)], pooled[len(whole) :]
        else:
            globally = pool(whole)
            rest = pool(parts) if len(parts) else globally[:0]
        features[..., 0, :][views.image_mask] = globally
        features[..., 1:, :][views.tile_mask] = rest
    mask = torch.cat([views.image_mask[..., None], views.tile_mask], dim=-1)
    index = torch.arange(images, device=features.device)[None, :, None].expand(mask.shape)
    return Grids(
        features.flatten(1, 2),
        mask.flatten(1, 2),
        views.boxes.flatten(1, 2) if views.boxes is not None else None,
        index.flatten(1, 2) if images > 1 else None,
    )
