"""Base class of both models' image processors: Pillow and NumPy alone, the same pixels on every machine."""

from abc import abstractmethod
from typing import Any

from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature  # pyright: ignore[reportPrivateImportUsage]  # its documented place
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict, is_valid_image

from . import images as pictures
from .loading import open_image_processor
from .video import Video


class ImageProcessor(PilBackend):
    """An image processor of transformers that opens what a batch of rows names, and makes the batch itself.

    A subclass says which settings cannot be (`_check`) and what it makes of the rows (`_batch`).
    """

    resample = PILImageResampling.BILINEAR
    do_resize = True
    do_rescale = True
    do_normalize = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):  # pyright: ignore[reportIncompatibleMethodOverride]  # by name alone
        """Load an image processor like any of transformers; no code in the folder is run, no pipe or device opened."""
        return super().from_pretrained(open_image_processor(pretrained_model_name_or_path, kwargs), **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open what is named by a path, an address or base64 text; everything else is left as it is."""
        return opened(image_url_or_urls)

    @abstractmethod
    def _check(self, settings: dict[str, Any]) -> None:
        """Raise ValueError for settings that cannot be."""

    @abstractmethod
    def _batch(self, images: Any, channels_first: bool | None, **settings) -> dict[str, Any]:
        """The arrays of a batch by their names, of opened images; nothing where no row has one."""

    def _side_of(self, size: SizeDict | dict[str, int]) -> int:
        """The side of a square size. Raises ValueError for any other."""
        height, width = size.get("height"), size.get("width")
        if not height or height != width:
            raise ValueError(f"{type(self).__name__}: size is {dict(size)}; expected an equal height and width")
        return height

    def _validate_preprocess_kwargs(self, *args, **kwargs):
        self._check(kwargs)
        super()._validate_preprocess_kwargs(*args, **kwargs)

    def _preprocess_image_like_inputs(self, images, *args, **kwargs) -> BatchFeature:
        layout = kwargs.get("input_data_format")
        channels_first = None if layout is None else ChannelDimension(layout) == ChannelDimension.FIRST
        return_tensors = kwargs.pop("return_tensors", None)
        batch = self._batch(self.fetch_images(images), channels_first, **kwargs)
        return BatchFeature(batch, tensor_type=return_tensors)


def opened(images: Any) -> Any:
    """Open the images among nested lists that are named by a path, an address or base64 text; a Video is left alone."""
    if images is None or isinstance(images, Video) or is_valid_image(images):
        return images
    if isinstance(images, list | tuple):
        rows = [opened(image) for image in images]
        return type(images)(rows) if isinstance(images, list) else rows
    if isinstance(images, str) or hasattr(images, "__fspath__"):
        return pictures.load_image(images)
    raise TypeError(
        f"images is of type {type(images).__name__}; expected a Pillow image, an array, a tensor, a path, None or "
        "lists of them"
    )
