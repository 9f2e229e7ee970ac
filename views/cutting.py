"""Images -> their views, and the views of a batch side by side: what a vision tower sees, and where each view lies."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from . import tiling as tilings
from .pixels import check_pixels, levels_of, normalise

SEPARATE_NAMES: tuple[str, ...] = ("pixel_values", "pixel_tiles", "tile_mask", "image_mask", "grid_boxes")
# Beside the size, the settings of an image processor that its views depend on.
CUTTING = ("tiling", "tile_size", "tile_overlap", "max_tiles", "do_resize", "resample")
NORMALISING = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


class ImageViews(NamedTuple):
    """Views of an image: `whole` [3,S,S], `tiles` [N,3,t,t], and the tiles' `boxes` [N,4] in pixels of height x width.

    The pixels are those of the image as it was cut, (y0, x0, y1, x1) with the end excluded.
    """

    whole: np.ndarray
    tiles: np.ndarray
    boxes: np.ndarray
    height: int
    width: int


def cut_views(image: Image.Image, side: int, settings: Mapping[str, Any]) -> ImageViews:
    """Cut an upright RGB image into its views, normalised: a global one `side` pixels wide, and tiles.

    `settings` are those of FireboltImageProcessor, by their names (CUTTING, NORMALISING).
    """
    tile, resample = settings["tile_size"], settings["resample"]
    if settings["tiling"] == "native":
        rows, columns = tilings.native_grid(image.height, image.width, tile, settings["max_tiles"])
        tiled = levels_of(image.resize((columns * tile, rows * tile), resample))
        boxes = tilings.native_boxes(rows, columns, tile)
        whole = levels_of(image.resize((side, side), resample))
    else:
        tiled = levels_of(image.resize((side, side), resample) if settings["do_resize"] else image)
        _, height, width = tiled.shape
        count = tilings.count_compatible(height, width, tile, settings["tile_overlap"])
        check_pixels(count * tile**2, count)
        boxes = tilings.compatible_boxes(height, width, tile, settings["tile_overlap"])
        whole = tilings.resize_bilinear(tiled, side, side)
    tiles = tilings.cut(tiled, boxes, tile)
    rule = {name: settings[name] for name in NORMALISING}
    return ImageViews(normalise(whole, **rule), normalise(tiles, **rule), boxes, tiled.shape[1], tiled.shape[2])


def stacked(rows: list[list[ImageViews]], side: int, tile: int, least_tiles: int = 0) -> dict[str, np.ndarray]:
    """Lay the views of B rows of at most I images out side by side, with room for the M tiles of the one with most.

    M is `least_tiles` at least.

    Returns `pixel_values` [B,I,3,S,S], `pixel_tiles` [B,I,M,3,t,t], `tile_mask` [B,I,M], `image_mask` [B,I] and
    `grid_boxes` [B,I,1+M,4], as FireboltImageProcessor describes them.
    """
    most_tiles = max([least_tiles, *(len(image.tiles) for row in rows for image in row)])
    lead = (len(rows), max(len(row) for row in rows))
    pixel_values = np.zeros((*lead, 3, side, side), dtype=np.float32)
    pixel_tiles = np.zeros((*lead, most_tiles, 3, tile, tile), dtype=np.float32)
    tile_mask = np.zeros((*lead, most_tiles), dtype=bool)
    image_mask = np.zeros(lead, dtype=bool)
    # A box of size 0 would have no logarithm: what is not there gets the box of the whole image.
    grid_boxes = np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (*lead, 1 + most_tiles, 1))
    for b, row in enumerate(rows):
        for i, image in enumerate(row):
            tiles = len(image.tiles)
            pixel_values[b, i] = image.whole
            pixel_tiles[b, i, :tiles] = image.tiles
            tile_mask[b, i, :tiles] = True
            image_mask[b, i] = True
            grid_boxes[b, i, : 1 + tiles] = tilings.relative_boxes(image.boxes, image.height, image.width)
    return dict(zip(SEPARATE_NAMES, (pixel_values, pixel_tiles, tile_mask, image_mask, grid_boxes)))
