"""`tokencutseg segment`: masks and overlays of images, as PNG files."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokencutseg.config import ConfigError

if TYPE_CHECKING:
    import numpy as np

SOFTWARE = "tokencutseg segment"
"""What our PNG files say wrote them: only such files are overwritten."""


def segment(arguments: argparse.Namespace) -> int:
    """Write two PNG files per image, a mask (0 or 255) and an overlay; the exit status."""
    import tokencutseg
    from tokencutseg.data.images import DataError, read_image
    from tokencutseg.report.notebooks import check_writable

    images, failures = _find_images(arguments.images)
    outputs: dict[tuple[Path, Path], Path] = {}  # (mask, overlay): image
    stems: set[str] = set()
    for image in images:  # by its own name, with a number behind it where that is taken, in any case
        names = (image.stem, *(f"{image.stem}-{number}" for number in range(2, len(images) + 2)))
        stem = next(name for name in names if name.lower() not in stems)
        stems.add(stem.lower())
        outputs[arguments.out / f"{stem}_mask.png", arguments.out / f"{stem}_overlay.png"] = image
    for file in (file for pair in outputs for file in pair):
        if file.exists() and not _is_ours(file):
            raise ConfigError(f"{file} is there already and not from an earlier call; choose another folder with --out")
    model = tokencutseg.load(arguments.model)
    check_writable(arguments.out, "--out")
    for (mask_file, overlay_file), image in outputs.items():
        try:
            pixels = read_image(image)
        except DataError as error:
            failures.append(str(error))
            continue
        mask = model.predict(pixels)
        _save(_overlay(pixels, mask.astype(bool)), overlay_file)
        _save(mask.astype("uint8") * 255, mask_file)
        print(f"{image} -> {mask_file}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _find_images(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that the arguments mean, each once and none of ours, and a sentence for each that means none."""
    from tokencutseg.data.pairing import is_image, is_visible

    found: dict[Path, Path] = {}  # by real path
    failures = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            there = [file for file in sorted(path.iterdir()) if file.is_file() and is_visible(file.name)]
            files = [file for file in there if is_image(file) and not _is_ours(file)]
            if others := [file.name for file in there if not is_image(file)]:
                print(f"note: skipped in {path}, as no images: {', '.join(others)}", file=sys.stderr)
        elif path.exists() or not glob.has_magic(argument):
            files = [path]  # a file that is missing is reported when it is read
        else:
            matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
            files = [Path(match) for match in matches if Path(match).is_file()]
        if not files:
            failures.append(f"{argument} holds no image" if path.is_dir() else f"no file matches {argument}")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values()), failures


def _overlay(pixels: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """The image uint8 (H, W, 3) with the outline of the mask bool (H, W) drawn just inside it."""
    from scipy.ndimage import binary_erosion

    width = max(1, round(max(lesion.shape) / 200))
    drawn = pixels.copy()
    drawn[lesion & ~binary_erosion(lesion, iterations=width)] = (0, 190, 255)  # no skin has this blue
    return drawn


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", SOFTWARE)
    Image.fromarray(pixels).save(path, pnginfo=text)


def _is_ours(file: Path) -> bool:
    from PIL import Image

    from tokencutseg.data.images import UNREADABLE

    try:
        with Image.open(file) as image:
            return image.info.get("Software") == SOFTWARE
    except UNREADABLE:  # no image, a broken one, or one that is too large
        return False
