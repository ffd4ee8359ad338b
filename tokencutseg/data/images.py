"""EncoderOutput one image or one mask from a file, whatever its pixel format."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

MASK_THRESHOLD = 127
"""A mask pixel brighter than this (of 255) is lesion: grey borders of resized or JPEG masks fall on one side."""

# what Pillow raises for a half-finished download, a text file named .jpg, a damaged header, an absurd size
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


class DataError(ValueError):
    """Data that cannot be used. The message is one sentence: what is wrong, where, and what to do."""


def read_image(path: str | Path, size: int | None = None) -> np.ndarray:
    """The image as uint8 (H, W, 3) RGB, or (size, size, 3) if `size` is given.

    Grey, palette, RGBA, CMYK and 16-bit files are converted; alpha is dropped. The EXIF orientation is *not* applied,
    because the ISIC masks match the stored pixels. Resizing is bilinear and does not keep the aspect (the released
    code's rule); a large JPEG is then decoded at the smallest DCT scale that is still twice `size`, which is several
    times faster. Raises DataError for a missing, truncated or unreadable file.
    """
    with _opened(path) as image:
        if size is not None:
            image.draft("RGB", (2 * size, 2 * size))
        image = to_rgb(image)
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.array(image)


def read_mask(path: str | Path, size: int | None = None) -> np.ndarray:
    """The mask as bool (H, W), or (size, size) if `size` is given (nearest neighbour); True is lesion.

    A pixel is lesion where its brightest channel exceeds 127 of 255, or the same share of 65535 in a file with 16 bits
    and a value above 255. A mask that holds no value but 0 and 1 is taken as labels: 1 is lesion. An empty mask is
    legal. Raises DataError for a missing, truncated or unreadable file.
    """
    with _opened(path) as image:
        if image.mode.startswith("I"):
            values = np.array(image)
            values = values if values.max() <= 255 else _to_8_bit(values)  # 8 bits, saved in a wider type
            lesion = values == 1 if values.max() <= 1 else values > MASK_THRESHOLD
        else:
            # the brightest channel, so that a mask painted in red or blue on black counts as well
            values = np.array(image if image.mode == "L" else to_rgb(image)).reshape(*image.size[::-1], -1).max(axis=2)
            lesion = values == 1 if values.max() <= 1 else values > MASK_THRESHOLD
        if size is not None:
            lesion = np.array(Image.fromarray(lesion).resize((size, size), Image.Resampling.NEAREST))
        return lesion


def file_size(path: str | Path) -> tuple[int, int]:
    """(H, W) of an image or mask in pixels, from the file's header only. Raises DataError as `read_image` does."""
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The opened image; whatever Pillow raises about the file, here or while it is decoded, becomes a DataError."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; check the path or download the file again")
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except _UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}); it is probably truncated or corrupt: "
            f"delete it and download it again"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, 8 bits each. Raises DataError for floating-point pixels."""
    if image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.array(image))).convert("RGB")
    if image.mode == "F":
        name = getattr(image, "filename", None) or "the image"
        raise DataError(f"{name} holds floating-point pixels, whose range is unknown; save it with 8 bits per channel")
    with warnings.catch_warnings():
        # transparency is dropped on purpose, whatever form the palette keeps it in
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """16-bit grey (H, W), which Pillow opens in a mode "I…", as uint8: the upper byte."""
    return (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
