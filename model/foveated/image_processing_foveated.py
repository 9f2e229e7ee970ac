"""FoveatedImageProcessor: images, and frames of videos, of any kind and size -> the frames of one batch."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, PILImageResampling, is_valid_image
from transformers.processing_utils import ImagesKwargs, Unpack

from .. import images as pictures
from ..image_processing_firebolt import MOST_PIXELS, as_rgb, levels_of, normalise
from ..loading import open_image_processor


class Clip(list):
    """The frames of a video: where a list of one image stands for that image, a clip of one frame is one frame."""


class FoveatedImagesKwargs(ImagesKwargs, total=False):
    image_frames: int | None


class FoveatedImageProcessor(PilBackend):
    r"""Resizes frames to a square and normalises them, by Pillow and NumPy alone: the same pixels on every machine.

    Args:
        size: height and width (equal) of a frame, 224. The whole frame is kept, whatever its aspect ratio.
        image_frames: as how many frames an image is shown, 8.
        resample: Pillow's filter, bilinear (antialiased).
        image_mean, image_std: ImageNet's; pixels become (level / 255 - mean) / std.
    """

    valid_kwargs = FoveatedImagesKwargs
    model_input_names = ["frames", "frame_mask"]

    resample = PILImageResampling.BILINEAR
    image_mean = (0.485, 0.456, 0.406)
    image_std = (0.229, 0.224, 0.225)
    size = {"height": 224, "width": 224}
    do_resize = True
    do_rescale = True
    do_normalize = True
    image_frames = 8

    def __init__(self, **kwargs: Unpack[FoveatedImagesKwargs]):
        super().__init__(**kwargs)
        _check(self.size, self.image_frames)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As on any image processor of transformers; no code in the folder is run, and no pipe or device opened."""
        return super().from_pretrained(open_image_processor(pretrained_model_name_or_path, kwargs), **kwargs)

    def preprocess(self, images: ImageInput, **kwargs: Unpack[FoveatedImagesKwargs]) -> BatchFeature:
        """The frames of the model for a batch of rows.

        Args:
            images: one image; or a list with, for each row, an image or a list of one (shown as `image_frames` equal
                frames), a list of frames, or None (no image). An image is a Pillow image of any mode, an array or
                tensor (`images.from_array` says which), a path, an address or base64 text.

        Returns:
            `frames` [B,T,3,S,S] float32, `frame_mask` [B,T] bool: False where a row has fewer frames than others, which
            are 0 there. Nothing at all if no row has an image.

        Raises:
            TypeError, ValueError, OSError: something that is no image, or cannot be read as one.
        """
        return super().preprocess(images, **kwargs)

    def fetch_images(self, images):
        """Open what is named by a path, an address or base64 text; everything else is left as it is."""
        if images is None or is_valid_image(images):
            return images
        if isinstance(images, list | tuple):
            return (Clip if isinstance(images, Clip) else list)(self.fetch_images(image) for image in images)
        if isinstance(images, str) or hasattr(images, "__fspath__"):
            return pictures.load_image(images)
        raise TypeError(
            f"images: a {type(images).__name__} came; a Pillow image, an array, a tensor, a path, None or lists of "
            "them are wanted"
        )

    def _validate_preprocess_kwargs(self, size, image_frames, **kwargs):
        _check(size, image_frames)
        super()._validate_preprocess_kwargs(size=size, **kwargs)

    def _preprocess_image_like_inputs(self, images: ImageInput, **kwargs) -> BatchFeature:
        layout = kwargs.get("input_data_format")
        first = None if layout is None else ChannelDimension(layout) == ChannelDimension.FIRST
        rows = frame_rows(self.fetch_images(images))
        return self._preprocess([(row, first) for row in rows], **kwargs)

    def _preprocess(self, rows, return_tensors=None, **kwargs) -> BatchFeature:
        size, repeats = kwargs["size"].height, kwargs["image_frames"]
        made = [
            np.stack([self._frame(image, first, **kwargs) for image in row]) if row else None for row, first in rows
        ]
        counts = [
            0 if frames is None else repeats if len(frames) == 1 and not isinstance(row, Clip) else len(frames)
            for frames, (row, _) in zip(made, rows)
        ]
        if not any(counts):
            return BatchFeature({}, tensor_type=return_tensors)
        batch = np.zeros((len(rows), max(counts), 3, size, size), dtype=np.float32)
        for b, (frames, count) in enumerate(zip(made, counts)):
            if count:
                batch[b, :count] = frames
        mask = np.arange(max(counts)) < np.array(counts)[:, None]
        return BatchFeature({"frames": batch, "frame_mask": mask}, tensor_type=return_tensors)

    def _frame(self, image, first: bool | None, size, do_resize: bool, resample, **pixel_rule) -> np.ndarray:
        """A normalised frame [3,S,S]."""
        picture: Image.Image = as_rgb(image, first)
        wanted = (size.width, size.height)
        if do_resize:
            picture = picture.resize(wanted, resample)
        elif picture.size != wanted:
            raise ValueError(
                f"do_resize: False came with an image of {picture.width} x {picture.height}, "
                f"{size.width} x {size.height} is wanted"
            )
        return normalise(levels_of(picture), **pixel_rule)


def frame_rows(images) -> list[Sequence]:
    """A list of frames for each row; an array or tensor of four axes is a clip, one of five a row for each clip.

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
                raise TypeError(f"images: a {type(image).__name__} came inside a row; an image or None is wanted")
        frames = pictures.of_one_scale([image for image in row if image is not None])
        rows.append(Clip(frames) if isinstance(row, Clip) else frames)
    return rows


def _axes(images) -> int:
    return getattr(images, "ndim", 0)


def _check(size, image_frames: int) -> None:
    if not size.height or size.height != size.width:
        raise ValueError(f"size: {dict(size)} came, an equal height and width are wanted")
    if image_frames < 1:
        raise ValueError(f"image_frames: {image_frames} came, at least 1 is wanted")
    if image_frames * size.height**2 > MOST_PIXELS:
        raise ValueError(
            f"size, image_frames: {image_frames:,} frames of {size.height:,} x {size.height:,} came, at most "
            f"{MOST_PIXELS:,} pixels in all are wanted"
        )


__all__ = ["Clip", "FoveatedImageProcessor"]
