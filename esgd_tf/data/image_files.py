"""Image files as a network wants them: PNG, JPEG, BMP and the first frame of a GIF."""

from __future__ import annotations

import dataclasses
import io
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image, ImageOps

from esgd_tf.data.errors import DataError

__all__ = ["ImageFile", "read_image"]

_FORMATS = ("PNG", "JPEG", "BMP", "GIF")
# ITU-R BT.601, the grey of JPEG; the sum is 1, so that grey stays what it was.
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A decoded image.

    Attributes:
        pixels: float32 [h, w, c], 0 ... 255, of the size asked for.
        original: Height and width of the image in the file, held upright.
        resized: Whether those differ from the size asked for.
    """

    pixels: NDArray[np.float32]
    original: tuple[int, int]
    resized: bool


def read_image(path: Path, shape: tuple[int, int, int]) -> ImageFile:
    """Read an image file, convert it to grey or colour, and resize it where its size differs.

    It is turned upright as its EXIF orientation says. Palettes and CMYK become colours; of 16 bits
    the upper 8 count. An image that has the shape already comes back as it is, to the last bit.
    Resizing is bilinear and antialiased, and does not keep the aspect ratio.

    Args:
        path: Path. The file.
        shape: tuple of three ints. Height, width, and channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        DataError: There is no such file, it is no image, or parts of it are transparent: what is
            to be seen behind them is not in the file.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name image files, as {path}/*.png.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    pixels = _colours(content, path)
    height, width, channels = shape
    if channels == 1:
        pixels = np.round(pixels @ _LUMA)[..., np.newaxis].astype(np.float32)
    original = pixels.shape[:2]
    resized = original != (height, width)
    if resized:
        pixels = tf.image.resize(pixels, (height, width), antialias=True).numpy()
    return ImageFile(np.clip(pixels, 0.0, 255.0), (original[0], original[1]), resized)


def _colours(content: bytes, path: Path) -> NDArray[np.float32]:
    """Return an image as float32 [h, w, 3], upright."""
    try:
        # Pillow warns of oddities that a viewer passes over.
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            warnings.simplefilter("ignore")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # grey of 16 bits; Pillow would cut it at 255
                grey = (np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8)
                see_through = "transparency" in image.info
                colours = Image.fromarray(grey).convert("RGB")
            else:
                see_through = bool(np.asarray(upright.convert("RGBA"))[..., 3].min() < 255)
                colours = upright.convert("RGB")
    except Image.DecompressionBombError:
        raise DataError(f"{path} is refused: it is far too large; make it smaller first.") from None
    except Exception:
        # Pillow's decoders fail in many ways at damaged files.
        raise DataError(
            f"{path} is no image that can be decoded: give PNG, JPEG, BMP or GIF files."
        ) from None
    if see_through:
        raise DataError(
            f"{path} is transparent in places, and what is to be seen there is not in the file: "
            "give it a background first."
        )
    return np.asarray(colours, np.float32)
