"""Images from anywhere as upright 8-bit RGB.

Files are opened with care: nothing runs another program, a decompression bomb is refused at Pillow's limit, and what is
missing, damaged or no image at all raises an error of one line that says what to do.
"""

import base64
import binascii
import stat
import warnings
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow hands these to another program (Ghostscript).
RUNS_A_PROGRAM = ("EPS",)
WHITE = (255, 255, 255, 255)
LONGEST_NAME = 255  # of a file, on any system
FROM_BASE64URL = str.maketrans("-_", "+/")
# Levels of 0..1 that were resized swing over their ends a little; 0..255 in floating point is never that dark.
OVER, UNDER, DARKEST = 1.1, -0.01, 2.0


class ImageError(ValueError):
    """Something that should be an image and cannot be read as one."""


def open_image(path: str | PathLike) -> Image.Image:
    """Open the image file at `path`, upright, as RGB; the first frame of an animation.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: there is no file to read at `path`.
        ImageError: what is there is no image, is damaged, or is larger than Pillow's limit for decompression bombs.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        file = path.open("rb") if stat.S_ISREG(mode) else None  # a pipe would be waited for
    except (FileNotFoundError, ValueError):  # a name with a NUL in it
        raise FileNotFoundError(f"{path} does not exist; check the path of the image") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"{path} does not exist, since a part of the path is a file; check it") from None
    except PermissionError:
        raise PermissionError(f"{path} may not be read; give yourself permission (chmod u+r)") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be opened ({error.strerror}); check the path of the image") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a directory; name one image file in it")
    if file is None:
        raise ImageError(f"{path} is not a regular file; name an image file")
    with file:
        return _decode(file, str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode the image in the bytes of a file as `open_image` does; `name` is what an ImageError calls it."""
    return _decode(BytesIO(data), name)


def load_image(source: str | PathLike | Image.Image) -> Image.Image:
    """Load an image as chat messages name it: a path, an http(s) address, base64 text or a `data:` URL.

    A text that a file has for its name is a path; else one that is an image in base64 (of any length, also base64url,
    with or without line breaks and padding) is that image; else it is a path that leads nowhere.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, str):
        if source.startswith(("http://", "https://")):
            return _decode(BytesIO(_download(source)), source)
        if source[:5].lower() == "data:":
            return _decode(BytesIO(bytes_of_data_url(source)), "the data: URL")
        there = _is_there(source)
        if not there and (data := _image_in_base64(source)) is not None:
            return _decode(BytesIO(data), "the base64 text")
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


def _decode(file: BinaryIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata of an image whose pixels are whole
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.format in RUNS_A_PROGRAM:
                    raise ImageError(f"{name} is {image.format}, which another program must draw; save it as PNG")
                image.load()
                return to_rgb(image)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, Pillow's limit against decompression bombs; "
            "scale the image down"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that can be read; save it as PNG, JPEG, WebP, GIF or TIFF") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ImageError(f"{name} is damaged or incomplete ({error}); save or download the image again") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any of Pillow's modes to upright RGB: EXIF orientation applied, transparency over white, 8 bits of 16."""
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey_levels(np.asarray(image), image.mode)).convert("RGB")
    if image.mode == "La":  # the one mode that Pillow turns into LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, WHITE)
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    # A damaged EXIF block may raise or warn; the pixels are whole.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _grey_levels(levels: np.ndarray, mode: str) -> np.ndarray:
    """8-bit grey of 16-bit, 32-bit and floating-point images.

    White is 65535 for 16 bits. The other two do not say: it is the least of 1 (floating point), 255 and 65535 that
    holds every level (1 also where levels swing over it a little); levels outside all of these are stretched from the
    lowest to the highest. Raises ImageError for a floating-point image that could be either of 0..1 and 0..255.
    """
    levels = np.nan_to_num(levels.astype(np.float64))
    low, high = levels.min(), levels.max()
    if mode == "F" and (white := white_of(low, high)) is not None:
        low, high = 0, white
    else:
        white = (65535,) if mode.startswith("I;16") else (255, 65535)
        fitting = [level for level in white if low >= 0 and high <= level]
        low, high = (0, fitting[0]) if fitting else (low, high)
    return np.rint(((levels - low) * (255 / ((high - low) or 1))).clip(0, 255)).astype(np.uint8)


def white_of(low: float, high: float) -> int | None:
    """Return 1 or 255, whichever is white in floating-point levels from `low` to `high`; None for levels outside both.

    Levels of 0..1 may swing over their ends a little, as a resized image's do. Raises ImageError where both could be.
    """
    if low >= UNDER and high <= OVER:
        return 1
    if not (low >= 0 and high <= 255):  # also NaN
        return None
    if high < DARKEST:
        raise ImageError(
            f"images has floating-point levels {low:g}..{high:g}, which could be of 0..1 or 0..255; expected one of "
            "these; clip them to 0..1, or give 8-bit levels"
        )
    return 255


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
