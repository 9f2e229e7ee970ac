"""The grids of a batch: made of the views of its images, or given as they are."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...cmm.positions import default_boxes, patch_boxes
from ...kernels.symbolic import varies
from .sheets import unpacked

# Of a normalised pixel.
BLACK = -1.0
PIXEL_ARGUMENTS = (
    *("pixel_values", "pixel_tiles", "tile_mask", "image_mask", "image_numbers", "image_times"),
    *("image_position_ids", "pixel_attention_mask"),
)
GRID_ARGUMENTS = ("grids", "grid_mask", "grid_boxes", "grid_images", "grid_times")


class Grids(NamedTuple):
    """Grids of a batch: features [B,G,D_v], mask [B,G] bool, boxes [B,G,4] or None, images and times [B,G] or None."""

    features: Tensor
    mask: Tensor
    boxes: Tensor | None
    images: Tensor | None
    times: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """Return the rows with at least one grid, [B] bool."""
        return self.mask.any(-1)

    @property
    def given(self) -> dict[str, Any]:
        """Return them as a connector's arguments."""
        return dict(zip(GRID_ARGUMENTS, self))


class Views(NamedTuple):
    """Views of I images in each row, a global view and M tiles of each, and which of them are there.

    images [B,I,3,S,S]; tiles [B,I,M,3,t,t] or None; image_mask [B,I] and tile_mask [B,I,M] bool; boxes [B,I,1+M,4]
    or None; numbers [B,I] int64 and times [B,I], of which image or video of its row each is, and its second of a
    video, or None
    """

    images: Tensor
    tiles: Tensor | None
    image_mask: Tensor
    tile_mask: Tensor
    boxes: Tensor | None
    numbers: Tensor | None = None
    times: Tensor | None = None


def given_grids(
    grids: Tensor,
    grid_mask: Tensor | None,
    grid_boxes: Tensor | None,
    grid_images: Tensor | None,
    grid_times: Tensor | None,
    text: Tensor,
    rows: int | None = None,
) -> Grids:
    """Return the grids that a caller has, for text [B,T,D]. Raises ValueError where they are not of its rows.

    `rows` are other than B where sequences are packed into one row.
    """
    rows = text.shape[0] if rows is None else rows
    if grids.dim() != 3 or grids.shape[0] != rows:
        raise ValueError(f"FireboltModel: grids has shape {list(grids.shape)}; expected [{rows}, G, D_v]")
    if grid_mask is None:
        grid_mask = torch.ones(grids.shape[:2], dtype=torch.bool, device=grids.device)
    return Grids(grids.to(text.dtype), grid_mask.bool(), grid_boxes, grid_images, grid_times)


def named_grids(arguments: Mapping[str, Tensor | None], text: Tensor) -> Grids:
    """Return the grids among a caller's keyword arguments, as `given_grids` does."""
    grids = arguments["grids"]
    assert grids is not None
    mask, boxes, images, times = (arguments.get(name) for name in GRID_ARGUMENTS[1:])
    return given_grids(grids, mask, boxes, images, times, text)


def views_of(
    pixel_values: Tensor,
    pixel_tiles: Tensor | None,
    tile_mask: Tensor | None,
    image_mask: Tensor | None,
    grid_boxes: Tensor | None,
    image_position_ids: Tensor | None,
    pixel_attention_mask: Tensor | None,
    image_numbers: Tensor | None = None,
    image_times: Tensor | None = None,
    *,
    tiled: bool = True,
) -> Views:
    """Return the views of a batch, given as in `FireboltModel.get_grids`; `tiled`: tiles are read.

    Raises ValueError for other shapes, and for tiles that are missing.
    """
    if image_position_ids is not None:
        given = {"pixel_tiles": pixel_tiles, "tile_mask": tile_mask, "image_mask": image_mask, "grid_boxes": grid_boxes}
        given |= {"image_numbers": image_numbers, "image_times": image_times}
        if twice := [name for name, tensor in given.items() if tensor is not None]:
            raise ValueError(
                f"FireboltModel: {', '.join(twice)} and image_position_ids are both given; expected all views in "
                "pixel_values, or each kind in its own argument"
            )
        pixel_values, pixel_tiles, tile_mask, image_mask, grid_boxes, image_numbers, image_times = unpacked(
            pixel_values, image_position_ids, pixel_attention_mask
        )
    elif pixel_values.dim() == 4:
        pixel_values = pixel_values.unsqueeze(1)
        pixel_tiles, tile_mask, image_mask, grid_boxes, image_numbers, image_times = (
            tensor.unsqueeze(1) if tensor is not None else None
            for tensor in (pixel_tiles, tile_mask, image_mask, grid_boxes, image_numbers, image_times)
        )
    if pixel_values.dim() != 5:
        raise ValueError(
            f"FireboltModel: pixel_values has shape {list(pixel_values.shape)}; expected [B,3,S,S] or [B,I,3,S,S]"
        )
    if tiled and pixel_tiles is None and tile_mask is None:
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
        "image_numbers": (image_numbers, (batch_size, images)),
        "image_times": (image_times, (batch_size, images)),
    }
    if (image_numbers is None) != (image_times is None):
        given, lacks = ("image_times", "image_numbers") if image_numbers is None else ("image_numbers", "image_times")
        raise ValueError(f"FireboltModel: {given} is given without {lacks}; expected both, or none of them")
    for name, (tensor, shape) in wanted.items():
        if tensor is None:
            continue
        found = tuple(tensor.shape)
        if (found[: len(shape)] if name == "pixel_tiles" else found) != shape:
            raise ValueError(
                f"FireboltModel: {name} has shape {list(tensor.shape)}; expected {list(shape)}, to go with pixel_values"
            )
    image_mask = image_mask.bool()
    tile_mask = tile_mask.bool() & image_mask[..., None]
    return Views(pixel_values, pixel_tiles, image_mask, tile_mask, grid_boxes, image_numbers, image_times)


def rows_with_images(image_mask: Tensor | None, pixel_attention_mask: Tensor | None) -> Tensor | None:
    """Return which rows have an image, [B] bool, as `FireboltModel.get_grids` is told; None where it is not told."""
    if pixel_attention_mask is not None:
        return pixel_attention_mask > 0
    if image_mask is None or image_mask.dim() == 1:
        return image_mask if image_mask is None else image_mask.bool()
    return image_mask.bool().flatten(1).any(-1)


class Seen(NamedTuple):
    """Views [n,...] as the tower sees them: `pooled` [n,D_v], `patches` [n,P,D_v]; None what was not asked for."""

    pooled: Tensor | None
    patches: Tensor | None

    def part(self, views: slice) -> "Seen":
        return Seen(*(None if one is None else one[views] for one in self))


Encode = Callable[[Tensor], Seen]


def encode_views(
    views: Views, encode: Encode, kind: str, sides: tuple[int, int], width: int, dtype: torch.dtype
) -> Grids:
    """Make the grids of `kind` "views", "patches" or "both", of width D_v, zero where there is no view.

    `encode` sees each size of views once. Of image after image: its global view and tiles, 1 + M grids, then its
    sides[0] x sides[1] patches; masked views are not encoded.
    """
    images, tiles = views.tile_mask.shape[1:]
    shown = kind != "patches" and views.tiles is not None and tiles > 0
    encoded = _all_encoded if torch.compiler.is_compiling() else _encoded
    seen, parts = encoded(views, encode, shown)
    several = views.numbers is not None or varies(images) or images > 1
    pieces: list[Tensor] = []
    masks: list[Tensor] = []
    boxes: list[Tensor | None] = []
    if kind != "patches":
        whole = _at_their_places(seen.pooled if seen is not None else None, views.image_mask, (width,), dtype)
        rest = _at_their_places(parts.pooled if parts is not None else None, views.tile_mask, (width,), dtype)
        pieces.append(torch.cat([whole[:, :, None], rest], dim=2))
        masks.append(torch.cat([views.image_mask[..., None], views.tile_mask], dim=-1))
        placed = views.boxes
        if placed is None and (kind == "both" or several):
            placed = default_boxes(1 + tiles, views.images.device).expand(*views.image_mask.shape, -1, -1)
        boxes.append(placed)
    if kind != "views":
        count = sides[0] * sides[1]
        patches = seen.patches if seen is not None else None
        pieces.append(_at_their_places(patches, views.image_mask, (count, width), dtype))
        masks.append(views.image_mask[..., None].expand(-1, -1, count))
        boxes.append(patch_boxes(*sides, device=views.images.device).expand(*views.image_mask.shape, -1, -1))
    mask = torch.cat(masks, -1)
    index = torch.arange(images, device=mask.device)[None] if views.numbers is None else views.numbers
    times = views.times
    there = [one for one in boxes if one is not None]
    return Grids(
        torch.cat(pieces, 2).flatten(1, 2),
        mask.flatten(1, 2),
        torch.cat(there, 2).flatten(1, 2) if there else None,
        index[..., None].expand(mask.shape).flatten(1, 2) if several else None,
        times[..., None].expand(mask.shape).flatten(1, 2) if times is not None else None,
    )


def _at_their_places(values: Tensor | None, mask: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Put features of `shape` where `mask` has their views, [*mask.shape,*shape]; zero where there is none.

    `values` are those of the views that there are, or, where a graph is made, of all of them.
    """
    if values is None:
        return torch.zeros(*mask.shape, *shape, dtype=dtype, device=mask.device)
    if torch.compiler.is_compiling():
        return torch.where(mask[(..., *(None for _ in shape))], values.unflatten(0, mask.shape), 0).to(dtype)
    features = torch.zeros(*mask.shape, *shape, dtype=dtype, device=mask.device)
    features[mask] = values
    return features


def _encoded(views: Views, encode: Encode, tiles: bool) -> tuple[Seen | None, Seen | None]:
    """The images and the tiles that there are as they are seen, None of what there is none."""
    whole = views.images[views.image_mask]
    if not len(whole):
        return None, None
    parts = whole[:0]
    if tiles and views.tiles is not None and views.tile_mask.any():
        parts = views.tiles[views.tile_mask]
    if not len(parts):
        return encode(whole), None
    if whole.shape[1:] != parts.shape[1:]:
        return encode(whole), encode(parts)
    both = encode(torch.cat([whole, parts]))
    return both.part(slice(len(whole))), both.part(slice(len(whole), None))


def _all_encoded(views: Views, encode: Encode, tiles: bool) -> tuple[Seen | None, Seen | None]:
    """All images and tiles as they are seen, of zeros where there is none: a graph cannot look into a mask."""
    seen = encode(_zero_where_none(views.images, views.image_mask).flatten(0, 1))
    if not tiles or views.tiles is None:
        return seen, None
    return seen, encode(_zero_where_none(views.tiles, views.tile_mask).flatten(0, 2))


def _zero_where_none(pixels: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[..., None, None, None], pixels, 0)


def with_black_images(views: Views, rows: Tensor) -> Views:
    """Put a black image first in the rows [B] bool, which have none."""
    images, mask = views.images.clone(), views.image_mask.clone()
    images[rows, 0] = BLACK
    mask[rows, 0] = True
    return views._replace(images=images, image_mask=mask)
