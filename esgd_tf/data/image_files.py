"""Read image files for a network: PNG, JPEG, BMP and the first frame of a GIF."""

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


@dataclasses.dataclass(frozen=True)
class ImageFile:
    """A decoded image.

    Attributes:
        pixels: float32 [h, w, c] in 0 ... 255, of the requested size.
        original: Height and width of the image in the file, after turning it upright.
        resized: Whether those differ from the requested size.
    """

    pixels: NDArray[np.float32]
    original: tuple[int, int]
    resized: bool


def read_image(path: Path, shape: tuple[int, int, int]) -> ImageFile:
    """Read an image file, convert it to grey or colour, and resize it if its size differs.

    It is turned upright as its EXIF orientation says. Palettes and CMYK become red, green and blue,
    colours become grey by ITU-R BT.601 (the luma of JPEG), and of 16 bits the upper 8 are used. An
    image that has the requested shape and 8 bits keeps its pixels, to the last bit. Resizing is
    bilinear and antialiased, and does not keep the aspect ratio.

    Args:
        path: Path. The file.
        shape: tuple of three ints. Height, width, and channels: 1 (grey) or 3 (red, green, blue).

    Raises:
        DataError: The file is missing or no image, or parts of the image are transparent, so that
            the file does not say what a viewer would see there.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder: name image files, as {path}/*.png.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    height, width, channels = shape
    pixels = _decode(content, path, channels)
    original = pixels.shape[:2]
    resized = original != (height, width)
    if resized:
        pixels = tf.image.resize(pixels, (height, width), antialias=True).numpy()
    return ImageFile(np.clip(pixels, 0.0, 255.0), (original[0], original[1]), resized)


def _decode(content: bytes, path: Path, channels: int) -> NDArray[np.float32]:
    """Return an image as float32 [h, w, channels], turned upright."""
    try:
        # Pillow warns about irregularities that image viewers ignore.
        with warnings.catch_warnings(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            warnings.simplefilter("ignore")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
                see_through = "transparency" in image.info
                visible = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            else:
                see_through = bool(np.asarray(upright.convert("RGBA"))[..., 3].min() < 255)
                visible = upright.convert("RGB")
            pixels = np.asarray(visible.convert("L" if channels == 1 else "RGB"), np.float32)
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
    return pixels.reshape(*pixels.shape[:2], channels)
