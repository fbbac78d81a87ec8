"""Image files as a network wants them: PNG, JPEG, BMP and the first frame of a GIF."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from esgd_tf.data.errors import DataError

__all__ = ["ImageFile", "read_image"]

# ITU-R BT.601, the grey of JPEG; the sum is 1, so that grey stays what it was.
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A decoded image.

    Attributes:
        pixels: float32 [h, w, c], 0 ... 255, of the size asked for.
        original: Height and width in the file.
        resized: Whether those differ from the size asked for.
    """

    pixels: NDArray[np.float32]
    original: tuple[int, int]
    resized: bool


def read_image(path: Path, shape: tuple[int, int, int]) -> ImageFile:
    """Read an image file, convert it to grey or colour, and resize it where its size differs.

    An image that has the shape already comes back as it is, to the last bit. Transparency is
    ignored. Resizing is bilinear and antialiased, and does not keep the aspect ratio.

    Args:
        path: The file.
        shape: Height, width, and channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        DataError: There is no such file, or it is no image.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name image files, as {path}/*.png.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    try:
        # The decoder of BMP converts nothing; the others turn palettes, grey and CMYK to colour.
        channels = 0 if content.startswith(b"BM") else 3
        decoded = tf.io.decode_image(content, channels, expand_animations=False).numpy()
    except (tf.errors.OpError, ValueError):
        raise DataError(
            f"{path} is no image that can be decoded: give PNG, JPEG, BMP or GIF files."
        ) from None
    pixels = decoded[..., :3].astype(np.float32)
    if pixels.shape[-1] < 3:
        pixels = np.repeat(pixels[..., :1], 3, axis=-1)
    height, width, channels = shape
    if channels == 1:
        pixels = np.round(pixels @ _LUMA)[..., np.newaxis].astype(np.float32)
    original = pixels.shape[:2]
    resized = original != (height, width)
    if resized:
        pixels = tf.image.resize(pixels, (height, width), antialias=True).numpy()
    return ImageFile(np.clip(pixels, 0.0, 255.0), (original[0], original[1]), resized)
