"""Read one image or one mask from a file, whatever its pixel format, and say in one sentence why one cannot be read."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
MASK_THRESHOLD = 127
"""A pixel of a grey mask brighter than this (of 255) is lesion: blurred borders of resized or JPEG masks are halved."""
FEW_VALUES = 16
"""A mask of more values than this is grey; of fewer, each value may have a meaning of its own."""

# what Pillow raises for a half-finished download, a text file named .jpg, a damaged header, an absurd size
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations whose stored width is the height of the photograph."""
_SIGNATURES = {
    "a HEIC or AVIF photograph": lambda start: start[4:8] == b"ftyp",
    "a DICOM file": lambda start: start[128:132] == b"DICM",
    "a PDF": lambda start: start[:4] == b"%PDF",
    "a zip archive": lambda start: start[:4] == b"PK\3\4",
    "a web page": lambda start: start.lstrip()[:1] == b"<" and b"<svg" not in start,
}


class DataError(ValueError):
    """Data that cannot be used. The message is one sentence: what is wrong, where, and what to do."""


def some(items: Collection[str], count: int = 3) -> str:
    """The first few of them, in words."""
    return ", ".join(sorted(items)[:count]) + (", …" if len(items) > count else "")


def summed_up(problems: list[str], most: int = 20) -> str:
    """Several problems as one message, each of them named up to `most`."""
    if len(problems) == 1:
        return problems[0]
    left = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return f"{len(problems)} problems: " + "; ".join(f"({n}) {p}" for n, p in enumerate(problems[:most], 1)) + left


def read_image(path: str | Path, size: int | None = None, upright: bool = True) -> np.ndarray:
    """The image as uint8 (H, W, 3) RGB, or (size, size, 3) if `size` is given.

    Files of all modes are converted; alpha is dropped. A photograph with an EXIF orientation is turned upright, as
    viewers and labelling tools show it, unless `upright` is False. Resizing is bilinear and does not keep the aspect
    (the released code's rule); a large JPEG is then decoded at the smallest DCT scale that is still twice `size`, which
    is several times faster. Raises DataError for a file that is missing or cannot be read.
    """
    with _opened(path) as image:
        if size is not None:
            image.draft("RGB", (2 * size, 2 * size))
        image = to_rgb(image, upright)
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.array(image)


def read_header(path: str | Path) -> tuple[int, int, int]:
    """(H, W, EXIF orientation) of the stored pixels; the orientation is 1 where none is given. Raises as `read_image`
    does."""
    with _opened(path) as image:
        orientation = image.getexif().get(0x0112, 1)
        return image.height, image.width, orientation if orientation in range(2, 9) else 1


def read_mask(path: str | Path, size: int | None = None, threshold: int | None = None) -> np.ndarray:
    """The mask as bool (H, W), or (size, size) if `size` is given (nearest neighbour); True is lesion.

    A pixel is lesion where its `mask_values` exceed `threshold`, by default the one that `lesion_threshold` finds for
    this file alone; masks of one split are to be read with one threshold. Raises DataError for a missing or unreadable
    file, and for one whose values can be read in two ways.
    """
    values, counts = mask_values(path, size)
    if threshold is None:
        threshold, _ = lesion_threshold(counts[None], path)
    return values > threshold


def mask_values(path: str | Path, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The brightness of a mask, uint8 (H, W) or (size, size), and how many pixels of the file have each of 256 values.

    Of a colour its brightest channel counts, so that a mask painted in red on black is one; of 16 bits the upper byte
    where a value is above 255; of a file of one colour whose transparency varies, its opacity.
    """
    with _opened(path) as image:
        if image.mode.startswith("I"):
            values = _16_bits(image, path)
            values = np.maximum(_upper_byte(values), values > 0) if values.max() > 255 else values
        else:
            values = np.array(image.convert("L")) if image.mode in ("L", "1") else _brightest(image, path)
        counts = np.bincount(values.ravel(), minlength=256)
        if size is not None:
            values = np.array(Image.fromarray(values.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))
        return values, counts


def _brightest(image: Image.Image, path: str | Path) -> np.ndarray:
    colours = np.array(to_rgb(image, upright=False))
    values, plain = colours.max(axis=2), np.ptp(colours, axis=(0, 1)).max() == 0
    if image.has_transparency_data:
        alpha = np.array(image.convert("RGBA"))[..., 3]
        if plain and alpha.min() < alpha.max():
            return alpha
        if alpha.min() < alpha.max() and ((values > MASK_THRESHOLD) != (alpha > MASK_THRESHOLD)).any():
            raise DataError(f"{path} holds one mask in its colours and another in its transparency; save it as grey")
    if not plain and np.ptp(values) == 0:
        raise DataError(f"{path} holds colours that are equally bright; save the mask with lesion white and skin black")
    return values


def lesion_threshold(counts: np.ndarray, where: str | Path) -> tuple[int, str]:
    """Above which value pixels are lesion in all masks of a split, and a note where that is not plain to see.

    `counts` (N, 256) says how many pixels of each file have each value (`mask_values`), `where` what they are masks of.
    Lesion is

    - every value above 0 where no file has more than one such value: 0 and 1, 0 and 255, 1 here and 2 there;
    - the brighter of two values;
    - every value above 127 in grey masks, and where few values lie between dark and bright.

    Raises DataError where two readings differ: values of several meanings, masks as dark as skin, photographs.
    """
    there = counts > 0  # (N, 256)
    values = np.flatnonzero(there.any(0))
    several = there[:, 1:].sum(1) > 1
    text = ", ".join(map(str, values[:FEW_VALUES])) + (", …" if len(values) > FEW_VALUES else "")
    if not several.any():
        return 0, f"the masks use the values {text}: all but 0 are read as lesion" if len(values) > 2 else ""
    if len(values) == 2:
        return int(values[0]), f"the masks hold the values {text} and no 0: the brighter one is read as lesion"
    pixels = counts.sum(0)
    dark, middle, not_skin = pixels[1:25].sum(), pixels[25:231].sum(), pixels[1:].sum()
    dim = int((there[:, 1:].any(1) & ~there[:, MASK_THRESHOLD + 1 :].any(1)).sum())
    if dim:
        reason = f"{dim} of {len(counts)} have values above 0 but none above {MASK_THRESHOLD}"
    elif len(values) <= FEW_VALUES and (dark > 0.01 * not_skin or middle > 0.2 * not_skin):
        reason = "these can be read in several ways"
    elif middle > 0.5 * pixels.sum():
        reason = "they are mostly grey, as photographs are"
    else:
        return MASK_THRESHOLD, ""
    raise DataError(f"the masks of {where} hold the values {text}: {reason}; save lesion as 255 and skin as 0")


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The opened image; whatever Pillow raises about the file, here or while it is decoded, becomes a DataError."""
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path} {_why_unreadable(Path(path), error)}") from error


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "does not exist; check the path, or the link if it is one"
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6  # million
        return f"has more pixels than the limit of {limit:.0f} million; save it smaller"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read ({error.strerror}); check its permissions and the disk"
    with path.open("rb") as file:
        start = file.read(512)
    kind = next((kind for kind, fits in _SIGNATURES.items() if fits(start)), None)
    if kind:
        return f"is {kind}, which cannot be read; save it as JPEG or PNG"
    if not start:
        return "cannot be read as an image: it is empty; get an intact copy"
    return f"cannot be read as an image ({error}); get an intact copy, or save one of a rare kind as PNG"


def to_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """An image of any mode in RGB, 8 bits each, turned as its EXIF orientation says unless `upright` is False. Raises
    DataError for pixels of floating point, and for integers beyond 16 bits."""
    name = getattr(image, "filename", None) or "the image"
    if upright and image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return Image.fromarray(_upper_byte(_16_bits(image, name))).convert("RGB")
    if image.mode == "F":
        raise _unknown_range(name, "floating-point")
    with warnings.catch_warnings():
        # transparency is dropped on purpose, whatever form the palette keeps it in
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        return image.convert("RGB")


def _16_bits(image: Image.Image, name: str | Path) -> np.ndarray:
    """The values of 16-bit grey (H, W), which Pillow opens in a mode "I…"; DataError for more bits."""
    values = np.array(image)
    if values.min() < 0 or values.max() > 65535:
        raise _unknown_range(name, "32-bit")
    return values


def _upper_byte(values: np.ndarray) -> np.ndarray:
    return (values >> 8).astype(np.uint8)


def _unknown_range(name: str | Path, kind: str) -> DataError:
    return DataError(f"{name} holds {kind} pixels, whose range is unknown; save it with 8 bits per channel")
