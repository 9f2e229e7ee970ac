"""Tiles of an image: the original's rule to the pixel, and one that keeps the aspect ratio.

Boxes are (y0, x0, y1, x1), the end excluded, in row-major order of their tiles.
"""

from math import inf, log, sqrt

import numpy as np

TILINGS = ("native", "compatible")


def compatible_boxes(height: int, width: int, tile: int, overlap: int = 0) -> np.ndarray:
    """Cut tiles as the original does: origins 0, s, 2s, ... <= max(length - tile, 0) on each axis, s = tile - overlap.

    What remains beyond the last full tile is dropped, so 256 x 256 with tiles of 128 and overlap 2 is covered up to
    254 x 254 by 2 x 2 tiles. Only an axis shorter than a tile gets a tile that reaches beyond the image: its box ends
    with the image, and `cut` repeats the edge.

    Returns:
        [N,4] int64 boxes in pixels.
    """
    rows, columns = _origins(height, tile, overlap), _origins(width, tile, overlap)
    boxes = [(y, x, min(y + tile, height), min(x + tile, width)) for y in rows for x in columns]
    return np.array(boxes, dtype=np.int64)


def count_compatible(height: int, width: int, tile: int, overlap: int = 0) -> int:
    """Count the boxes that `compatible_boxes` gives."""
    return len(_origins(height, tile, overlap)) * len(_origins(width, tile, overlap))


def _origins(length: int, tile: int, overlap: int) -> range:
    return range(0, max(length - tile, 0) + 1, tile - overlap)


def native_grid(height: int, width: int, tile: int, max_tiles: int) -> tuple[int, int]:
    """Choose (rows, columns) of tiles whose rectangle is nearest to the image, at most `max_tiles` of them.

    That is the nearest multiple of the tile on each axis where the budget allows it. Where it does not, the image is
    scaled down to the budget's area (a rectangle of r x c tiles, real numbers with r c = max_tiles and r / c = H / W),
    and the grid least stretched against it is taken: the one that minimises log^2(rows / r) + log^2(columns / c).
    """
    rows, columns = max(1, round(height / tile)), max(1, round(width / tile))
    if rows * columns <= max_tiles:
        return rows, columns
    r, c = sqrt(max_tiles * height / width), sqrt(max_tiles * width / height)
    best, least = (1, 1), (inf, inf)
    for rows in range(1, max_tiles + 1):
        for columns in range(1, max_tiles // rows + 1):
            down, across = log(rows / r), log(columns / c)
            # Rounded, so that an exact tie is one on every machine; of two that tie, the truer aspect ratio wins.
            stretch = (round(down**2 + across**2, 9), round(abs(down - across), 9))
            if stretch < least:
                best, least = (rows, columns), stretch
    return best


def native_boxes(rows: int, columns: int, tile: int) -> np.ndarray:
    """Return [rows * columns, 4] int64 boxes, in pixels of the image resized to (rows * tile, columns * tile)."""
    boxes = [(y * tile, x * tile, (y + 1) * tile, (x + 1) * tile) for y in range(rows) for x in range(columns)]
    return np.array(boxes, dtype=np.int64)


def relative_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return [1+N,4] float32, in 0..1 of the image: the whole image (the global view) first, then `boxes`."""
    relative = boxes / np.array([height, width, height, width], dtype=np.float64)
    return np.concatenate([[[0.0, 0.0, 1.0, 1.0]], relative]).astype(np.float32)


def cut(image: np.ndarray, boxes: np.ndarray, tile: int) -> np.ndarray:
    """Cut boxes out of `image` [C,H,W]: [N,C,tile,tile]; one smaller than a tile repeats its last row and column."""
    tiles = np.empty((len(boxes), image.shape[0], tile, tile), dtype=image.dtype)
    for found, (y0, x0, y1, x1) in zip(tiles, boxes):
        missing = ((0, 0), (0, tile - (y1 - y0)), (0, tile - (x1 - x0)))
        found[:] = np.pad(image[:, y0:y1, x0:x1], missing, mode="edge")
    return tiles


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize `image` [C,H,W] to [C,height,width] as the original's global view is.

    Bilinear, half-pixel centres, no antialiasing. Output pixel i samples at (i + 1/2) H / height - 1/2, clamped to the
    image, between its two neighbours. Computed in float64, returned as float32.
    """
    above, below, down = _neighbours(image.shape[1], height)
    left, right, across = _neighbours(image.shape[2], width)
    down = down[:, None]
    # Only the sampled rows and columns are ever widened to float64, so that a large photograph costs no more.
    upper, lower = image[:, above], image[:, below]
    start = upper[:, :, left] * (1 - down) + lower[:, :, left] * down
    end = upper[:, :, right] * (1 - down) + lower[:, :, right] * down
    return (start * (1 - across) + end * across).astype(np.float32)


def _neighbours(length: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pixel before each sample, the pixel after it, and the weight of the latter."""
    position = np.clip((np.arange(samples) + 0.5) * (length / samples) - 0.5, 0, length - 1)
    before = np.floor(position).astype(np.int64)
    return before, np.minimum(before + 1, length - 1), position - before
