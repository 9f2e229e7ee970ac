"""Image files as upright 8-bit RGB.

They are opened with care: nothing runs another program, a decompression bomb is refused at Pillow's limit, and what is
missing, damaged or no image at all raises an error of one line that says what to do.
"""

import stat
import warnings
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow hands these to another program (Ghostscript).
RUNS_A_PROGRAM = ("EPS",)
WHITE = (255, 255, 255, 255)
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
