"""RGB images -> the numbers that a vision tower takes, as the image processors of both models need it."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Of one image. In float32 these take 400 MB.
MOST_PIXELS, MOST_TILES = 2**25, 2**14


def levels_of(image: Image.Image) -> np.ndarray:
    """Return the levels [3,H,W] of an RGB image."""
    return np.moveaxis(np.asarray(image), -1, 0)


def normalise(
    levels: np.ndarray,
    do_rescale: bool,
    rescale_factor: float,
    do_normalize: bool,
    image_mean: float | Sequence[float],
    image_std: float | Sequence[float],
    **_,
) -> np.ndarray:
    """Compute (levels * rescale_factor - mean) / std, float32, as one multiply and one subtract.

    Channels are third from last.
    """
    factor = rescale_factor if do_rescale else 1.0
    mean, std = (image_mean, image_std) if do_normalize else (0.0, 1.0)
    mean, std = (np.broadcast_to(np.asarray(value, dtype=np.float64), 3)[:, None, None] for value in (mean, std))
    return levels * (factor / std).astype(np.float32) - (mean / std).astype(np.float32)


def check_pixels(pixels: int, tiles: int = 0) -> None:
    """Raise ValueError where an image would become so many pixels, or tiles, that memory ends."""
    if pixels > MOST_PIXELS or tiles > MOST_TILES:
        raise ValueError(
            f"size, tile_size, tile_overlap and max_tiles make {tiles:,} tiles and {pixels:,} pixels of one image; "
            f"expected at most {MOST_TILES:,} and {MOST_PIXELS:,}"
        )
