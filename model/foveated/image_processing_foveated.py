"""FoveatedImageProcessor: images, and frames of videos, of any kind and size -> the frames of one batch."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
from transformers.image_utils import ImageInput, SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs

from ...views.pixels import MOST_PIXELS, levels_of, normalise
from .. import images as pictures
from ..image_processing import BatchFeature, ImageProcessor
from ..images import as_rgb
from .packed import PACKED_NAMES, packed_batch


class Clip(list):
    """Frames of a video: where a list of one image stands for that image, a clip of one frame is one frame."""


class FoveatedImagesKwargs(ImagesKwargs, total=False):
    image_frames: int | None
    packed: bool | None


class FoveatedImageProcessor(ImageProcessor):
    r"""Image processor that resizes frames to a square and normalises them.

    By Pillow and NumPy alone: the same pixels on every machine.

    Args:
        size: height and width (equal) of a frame, 224. The whole frame is kept, whatever its aspect ratio.
        image_frames: as how many frames an image is shown, 8.
        resample: Pillow's filter, bilinear (antialiased).
        image_mean, image_std: ImageNet's; pixels become (level / 255 - mean) / std.
        packed: images come in `pixel_values`, each once, with keys that trainers of the field pass on (trl's GRPO and
            RLOO drop all others), in the place of `frames` and `frame_mask`; False.
    """

    valid_kwargs = FoveatedImagesKwargs

    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)
    size = {"height": 224, "width": 224}
    image_frames = 8
    packed = False

    def __init__(self, **kwargs: Unpack[FoveatedImagesKwargs]):
        super().__init__(**kwargs)
        self._check(vars(self))

    @property
    def model_input_names(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]  # goes with `packed`
        return list(PACKED_NAMES) if self.packed else ["frames", "frame_mask"]

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]  # more keywords, which pyright does not unpack
        self, images: ImageInput, **kwargs: Unpack[FoveatedImagesKwargs]
    ) -> BatchFeature:
        """Make the frames of the model for a batch of rows.

        Args:
            images: one image; or a list with, for each row, an image or a list of one (shown as `image_frames` equal
                frames), a list of frames, or None (no image). An image is a Pillow image of any mode, an array or
                tensor (`images.from_array` says which), a path, an address or base64 text.

        Returns:
            `frames` [B,T,3,S,S] float32, `frame_mask` [B,T] bool: False where a row has fewer frames than others, which
            are 0 there. Nothing at all if no row has an image.

            With `packed`, for the n images of all rows: `pixel_values` [n,3,S,S] float32; `image_position_ids` [n,2]
            int64, the frames of its row, the end excluded, that an image is shown as; `pixel_attention_mask` [B] int64,
            how many images each row has.

        Raises:
            TypeError, ValueError, OSError: something that is no image, or cannot be read as one.
        """
        return super().preprocess(images, **kwargs)

    def _check(self, settings: dict[str, Any]) -> None:
        owner, side, frames = type(self).__name__, self._side_of(settings["size"]), settings["image_frames"]
        if frames < 1:
            raise ValueError(f"{owner}: image_frames is {frames}; expected at least 1")
        if frames * side**2 > MOST_PIXELS:
            raise ValueError(
                f"{owner}: size and image_frames make {frames:,} frames of {side:,} x {side:,} pixels; expected at "
                f"most {MOST_PIXELS:,} pixels in all"
            )

    def _batch(self, images: Any, channels_first: bool | None, **settings) -> dict[str, Any]:
        rows, size, repeats = frame_rows(images), self._side_of(settings["size"]), settings["image_frames"]
        made = [
            np.stack([self._frame(image, channels_first, **settings) for image in row]) if row else None for row in rows
        ]
        counts = [
            0 if frames is None else repeats if len(frames) == 1 and not isinstance(row, Clip) else len(frames)
            for frames, row in zip(made, rows)
        ]
        if not any(counts):
            return {}
        if settings["packed"]:
            return packed_batch(made, counts)
        batch = np.zeros((len(rows), max(counts), 3, size, size), dtype=np.float32)
        for b, (frames, count) in enumerate(zip(made, counts)):
            if count:
                batch[b, :count] = frames
        mask = np.arange(max(counts)) < np.array(counts)[:, None]
        return {"frames": batch, "frame_mask": mask}

    def _frame(
        self, image: Any, channels_first: bool | None, size: SizeDict, do_resize: bool, resample, **pixel_rule
    ) -> np.ndarray:
        """A normalised frame [3,S,S]."""
        picture, side = as_rgb(image, channels_first), self._side_of(size)
        if do_resize:
            picture = picture.resize((side, side), resample)
        elif picture.size != (side, side):
            raise ValueError(
                f"FoveatedImageProcessor: do_resize is False for an image of {picture.width} x {picture.height}; "
                f"expected {side} x {side}"
            )
        return normalise(levels_of(picture), **pixel_rule)


def frame_rows(images) -> list[Sequence]:
    """Return a list of frames for each row; an array or tensor of four axes is a clip, one of five a row for each clip.

    Frames of one row, and of one array, have one scale of levels.
    """
    if _axes(images) == 5:
        images = list(pictures.of_one_scale([images])[0])
    elif not isinstance(images, list | tuple) or isinstance(images, Clip):
        images = [images]
    rows = []
    for row in images:
        if _axes(row) == 4:
            row = Clip(row)
        elif not isinstance(row, list | tuple):
            row = [row]
        for image in row:
            if image is not None and not is_valid_image(image):
                raise TypeError(f"images has a {type(image).__name__} in a row; expected an image or None")
        frames = pictures.of_one_scale([image for image in row if image is not None])
        rows.append(Clip(frames) if isinstance(row, Clip) else frames)
    return rows


def _axes(images) -> int:
    return getattr(images, "ndim", 0)


__all__ = ["Clip", "FoveatedImageProcessor"]
