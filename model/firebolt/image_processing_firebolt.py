"""FireboltImageProcessor: images of any kind and size -> global views, tiles, masks and boxes of one batch."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Unpack

import numpy as np
import torch
from transformers.image_utils import ImageInput, is_valid_image
from transformers.processing_utils import ImagesKwargs

from ...views import tiling as tilings
from ...views.cutting import SEPARATE_NAMES, cut_views, stacked
from ...views.pixels import check_pixels
from .. import images as pictures
from ..image_processing import BatchFeature, ImageProcessor
from ..images import as_rgb
from ..video import Video
from .sheets import PACKED_NAMES, packed_batch

# Beside SEPARATE_NAMES, where there are videos.
VIDEO_NAMES: tuple[str, ...] = ("image_numbers", "image_times")


class Shown(NamedTuple):
    """An image, or a frame of a video: of which image or video of its row it is, and its second, 0 for an image."""

    image: Any
    number: int
    time: float


class FireboltImagesKwargs(ImagesKwargs, total=False):
    tiling: Literal["native", "compatible"] | None
    tile_size: int | None
    tile_overlap: int | None
    max_tiles: int | None
    packed: bool | None


class FireboltImageProcessor(ImageProcessor):
    r"""Image processor that cuts each image into one global view and its tiles.

    By Pillow and NumPy alone: the same pixels on every machine.

    Args:
        tiling: `"native"` keeps the aspect ratio: the image is resized to the nearest multiple of the tile within
            `max_tiles`, and the tiles cover all of it. `"compatible"` is the original's rule to the pixel: tiles every
            `tile_size - tile_overlap` pixels, what is left over at the far edges is dropped.
        size: height and width (equal) of the global view, 256.
        tile_size: height and width of a tile, 128.
        tile_overlap: pixels that neighbouring tiles share, 2; compatible tiling only.
        max_tiles: the tile budget of one image, 4; native tiling only.
        do_resize: compatible tiling only. True, as the original's data path has it: the image is resized to `size`
            before it is tiled, so that there are always as many grids. False: it is tiled as it is, and the number of
            grids goes with its size.
        resample: Pillow's filter, bilinear (antialiased). The compatible global view of an image that was not resized
            is bilinear without antialiasing, as the original's is.
        rescale_factor, image_mean, image_std: pixels become (level * rescale_factor - mean) / std; SigLIP's 1/255, 0.5
            and 0.5. A factor of 1/256 gives (level - 128) / 128.
        packed: all views of an image come on one sheet in `pixel_values`, with keys that trainers of the field pass on
            (trl's GRPO and RLOO drop all others), in the place of five inputs; False.
    """

    valid_kwargs = FireboltImagesKwargs

    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    size = {"height": 256, "width": 256}
    tiling = "native"
    tile_size = 128
    tile_overlap = 2
    max_tiles = 4
    packed = False

    def __init__(self, **kwargs: Unpack[FireboltImagesKwargs]):
        super().__init__(**kwargs)
        self._check(vars(self))

    @property
    def model_input_names(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]  # goes with `packed`
        return list(PACKED_NAMES if self.packed else SEPARATE_NAMES)

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]  # more keywords, which pyright does not unpack
        self, images: ImageInput, **kwargs: Unpack[FireboltImagesKwargs]
    ) -> BatchFeature:
        """Make the five image inputs of the model for a batch of rows.

        Args:
            images: one image; or a list with, for each row, an image, None (no image), or a list of images and Nones.
                An image is a Pillow image of any mode, an array or tensor (`images.from_array` says which), a path, an
                address or base64 text; a `Video` in its place stands for all of its frames.

        Returns:
            `pixel_values` [B,3,S,S] float32, the global views; `pixel_tiles` [B,M,3,t,t] float32; `tile_mask` [B,M]
            bool; `image_mask` [B] bool; `grid_boxes` [B,1+M,4] float32, (y0, x0, y1, x1) in 0..1 of the image, global
            view first. An axis I follows B in all five if a row has more than one image. What is not there is 0 under
            a False mask, and its box the whole image. Nothing at all if no row has an image.

            With a video in any row, each of its frames being an image of I, also `image_numbers` [B] or [B,I] int64,
            which image or video of its row a frame is of, and `image_times` [B] or [B,I] float32, its second; 0 for
            images.

            With `packed`, for the n images of all rows: `pixel_values` [n,3,H,W] float32, the global view at the top
            left of a sheet and its tiles beside it; `image_position_ids` [n,1+M,2,4] int64, (y0, x0, y1, x1) of each
            view on the sheet and of what it shows in pixels of the image as it was cut, -1 where there is no view
            (with a video [n,1+M,3,4], in the third place of the global view number and milliseconds, 0, 0);
            `pixel_attention_mask` [B] int64, how many images each row has. All but n is the same for every batch,
            except with compatible tiling of images that are not resized.

        Raises:
            TypeError, ValueError, OSError: something that is no image, or cannot be read as one.
        """
        return super().preprocess(images, **kwargs)

    def _check(self, settings: dict[str, Any]) -> None:
        owner, tiling, tile = type(self).__name__, settings["tiling"], settings["tile_size"]
        overlap, max_tiles = settings["tile_overlap"], settings["max_tiles"]
        if tiling not in tilings.TILINGS:
            raise ValueError(f"{owner}: tiling is {tiling!r}; expected one of {', '.join(tilings.TILINGS)}")
        side = self._side_of(settings["size"])
        if tile < 1:
            raise ValueError(f"{owner}: tile_size is {tile}; expected at least 1")
        if not 0 <= overlap < tile:
            raise ValueError(f"{owner}: tile_overlap is {overlap}; expected 0 to tile_size - 1 = {tile - 1}")
        if max_tiles < 1:
            raise ValueError(f"{owner}: max_tiles is {max_tiles}; expected at least 1")
        count = self._room(settings)
        check_pixels(side**2 + count * tile**2, count)

    def _batch(self, images: Any, channels_first: bool | None, **settings) -> dict[str, Any]:
        # Before Pillow sees it, an image is RGB and upright, so that a file and its pixels give the same views.
        given = image_rows(images)
        rows = [list(_shown(row)) for row in given]
        side = self._side_of(settings["size"])
        views = [[cut_views(as_rgb(one.image, channels_first), side, settings) for one in row] for row in rows]
        videos = any(isinstance(image, Video) for row in given for image in row)
        if not any(views):
            return {}
        size, tile_size = self._side_of(settings["size"]), settings["tile_size"]
        most_tiles = max(len(image.tiles) for row in views for image in row)
        if settings["packed"]:
            moments = [(one.number, one.time) for row in rows for one in row] if videos else None
            return packed_batch(views, size, tile_size, max(most_tiles, self._room(settings)), moments)
        batch = stacked(views, size, tile_size)
        if videos:
            batch |= dict(zip(VIDEO_NAMES, _moments(rows)))
        if max(len(row) for row in views) == 1:
            batch = {name: array[:, 0] for name, array in batch.items()}
        return batch

    def _room(self, settings: dict[str, Any]) -> int:
        """Count the tiles of an image as large as the global view; with native tiling the most of any image."""
        if settings["tiling"] == "native":
            return settings["max_tiles"]
        side = self._side_of(settings["size"])
        return tilings.count_compatible(side, side, settings["tile_size"], settings["tile_overlap"])


def image_rows(images) -> list[list]:
    """Return a list of images for each row, of what `FireboltImageProcessor.preprocess` takes, without missing ones.

    A single image is one row; an array or tensor of four axes is a row for each image. A Video stands for an image.
    """
    if not isinstance(images, list | tuple):
        images = _unstacked(images) if _is_stack(images) else [images]
    rows = [row if isinstance(row, list | tuple) else _unstacked(row) if _is_stack(row) else [row] for row in images]
    for row in rows:
        for image in row:
            if image is not None and not isinstance(image, Video) and not is_valid_image(image):
                raise TypeError(f"images has a {type(image).__name__} in a row; expected an image or None")
    return [[image for image in row if image is not None] for row in rows]


def _shown(row: list) -> Iterator[Shown]:
    """The images of a row, and the frames of its videos."""
    for number, one in enumerate(row):
        if isinstance(one, Video):
            for frame, time in zip(pictures.of_one_scale(one.frames), one.times):
                yield Shown(frame, number, time)
        else:
            yield Shown(one, number, 0.0)


def _moments(rows: list[list[Shown]]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [B,I] int64 and seconds [B,I] float32 of the images of rows, 0 where a row has fewer."""
    lead = (len(rows), max(len(row) for row in rows))
    numbers, times = np.zeros(lead, dtype=np.int64), np.zeros(lead, dtype=np.float32)
    for b, row in enumerate(rows):
        numbers[b, : len(row)] = [one.number for one in row]
        times[b, : len(row)] = [one.time for one in row]
    return numbers, times


def _is_stack(images) -> bool:
    return isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4


def _unstacked(images) -> list:
    return list(pictures.of_one_scale([images])[0])


__all__ = ["FireboltImageProcessor"]
