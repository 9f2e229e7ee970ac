"""Images from anywhere as upright 8-bit RGB: addresses, base64 text, arrays and tensors beside files."""

import base64
import binascii
import warnings
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import torch
from PIL import Image

from ..views.images import ImageError, decode_image, open_image, to_rgb, white_of

LONGEST_NAME = 255  # of a file, on any system
FROM_BASE64URL = str.maketrans("-_", "+/")


def load_image(source: str | PathLike | Image.Image) -> Image.Image:
    """Load an image as chat messages name it: a path, an http(s) address, base64 text or a `data:` URL.

    A text that a file has for its name is a path; else one that is an image in base64 (of any length, also base64url,
    with or without line breaks and padding) is that image; else it is a path that leads nowhere.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, str):
        if source.startswith(("http://", "https://")):
            return decode_image(_download(source), source)
        if source[:5].lower() == "data:":
            return decode_image(bytes_of_data_url(source), "the data: URL")
        there = _is_there(source)
        if not there and (data := _image_in_base64(source)) is not None:
            return decode_image(data, "the base64 text")
        if not there and len(source) > LONGEST_NAME:
            raise FileNotFoundError(f"{source[:60]}... does not exist as a file and is no base64; check the path")
    return open_image(source)


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # longer than any name, or with a NUL in it
        return False


def bytes_of_data_url(url: str) -> bytes:
    """Return what a `data:` URL holds. Raises ImageError where it is none."""
    about, comma, text = url.partition(",")
    if not comma:
        raise ImageError("the data: URL has no comma before its data; expected data:image/png;base64,...")
    if not about.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(text)
    try:
        return _from_base64(unquote(text))
    except binascii.Error as error:
        raise ImageError(f"the data: URL is not valid base64 ({error})") from None


def _image_in_base64(text: str) -> bytes | None:
    """The bytes of a text in base64; None where it is none, or no image and no longer than a file's name may be."""
    try:
        data = _from_base64(text)
    except ValueError:
        return None
    return data if len(text) > LONGEST_NAME or _begins_as_an_image(data) else None


def _from_base64(text: str) -> bytes:
    """Base64 or base64url, whatever stands between its lines and whether or not it is padded."""
    letters = "".join(text.split()).rstrip("=").translate(FROM_BASE64URL)
    return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)


def _begins_as_an_image(data: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.open(BytesIO(data)).close()
    except Image.DecompressionBombError:
        return True
    except Exception:
        return False
    return True


def _download(url: str) -> bytes:
    # Only here, since a library that never meets a URL need not load an HTTP client.
    from huggingface_hub.utils import httpx

    try:
        return httpx.get(url, follow_redirects=True, timeout=30).raise_for_status().content
    except httpx.HTTPError as error:
        raise ImageError(f"{url} could not be fetched ({error}); download the image and give its path") from None


def of_one_scale(arrays: Sequence) -> list:
    """Return the frames of a clip, or the images of a stack, so that none is read on a scale of its own.

    Where the floating-point arrays among them have levels of 0..255 together, each becomes 8 bits; a dark frame alone
    would pass for one of 0..1.
    """
    ends = [(float(a.min()), float(a.max())) for a in arrays if _is_floating(a) and 0 not in a.shape]
    if not ends or white_of(min(low for low, _ in ends), max(high for _, high in ends)) != 255:
        return list(arrays)
    return [_rounded(a) if _is_floating(a) else a for a in arrays]


def _is_floating(array) -> bool:
    if isinstance(array, torch.Tensor):
        return array.is_floating_point()
    return isinstance(array, np.ndarray) and np.issubdtype(array.dtype, np.floating)


def _rounded(array: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array.round().to(torch.uint8)
    return np.rint(array).astype(np.uint8)


def from_array(array: np.ndarray | torch.Tensor, channels_first: bool | None = None) -> Image.Image:
    """Make an RGB image of an array [H,W], [H,W,C] or [C,H,W] with 1, 3 or 4 channels.

    Levels are 0..255 in any dtype, or 0..1 in a floating one (which its highest level tells), or 0..65535 in uint16, or
    bool. Where both ends could be the channels, a tensor has them first and a NumPy array last; `channels_first`
    settles it.

    Raises:
        ValueError: another shape, or levels outside these ranges (an image that is already normalised, say), or so
            close to 1 that they could be on either scale.
    """
    if isinstance(array, torch.Tensor):
        channels_first = _channels_first(array.shape, array.shape[0] in (1, 3, 4), channels_first)
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    else:
        channels_first = _channels_first(array.shape, array.shape[-1:] not in ((1,), (3,), (4,)), channels_first)
    if array.ndim == 3 and channels_first:
        array = np.moveaxis(array, 0, -1)
    levels = _eight_bits(array)
    if levels.ndim == 3 and levels.shape[-1] == 1:
        levels = levels[..., 0]
    return to_rgb(Image.fromarray(np.ascontiguousarray(levels)))


def _channels_first(shape: tuple[int, ...], guess: bool, told: bool | None) -> bool:
    first = guess if told is None else told
    channels = 1 if len(shape) == 2 else shape[0 if first else -1] if len(shape) == 3 else 0
    if channels not in (1, 3, 4) or 0 in shape:
        raise ValueError(
            f"images has an array of shape {list(shape)}; expected [H,W], [H,W,C] or [C,H,W] with C = 1, 3 or 4"
        )
    return first


def _eight_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.rint(array / 257).astype(np.uint8)
    levels = array.astype(np.float64)
    low, high = levels.min(), levels.max()
    white = white_of(low, high) if _is_floating(array) else 255 if low >= 0 and high <= 255 else None
    if white is None:
        raise ValueError(
            f"images has an array of {array.dtype} with levels {low:g}..{high:g}; expected 0..255, or 0..1 in "
            "floating point (the processor normalises them itself)"
        )
    if array.dtype == np.bool_ or white == 1:
        levels = levels * 255
    return np.rint(levels.clip(0, 255)).astype(np.uint8)


def as_rgb(image, channels_first: bool | None) -> Image.Image:
    """Return anything that is an image as an upright RGB image."""
    image = to_rgb(image) if isinstance(image, Image.Image) else from_array(image, channels_first)
    if 0 in image.size:
        raise ValueError(f"images has an image of {image.width} x {image.height} pixels; expected at least 1 x 1")
    return image


__all__ = [
    "ImageError",
    "as_rgb",
    "bytes_of_data_url",
    "decode_image",
    "from_array",
    "load_image",
    "of_one_scale",
    "open_image",
]
