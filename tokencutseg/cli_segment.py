"""`tokencutseg segment`: masks and overlays of images, as PNG files."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokencutseg.config import ConfigError

if TYPE_CHECKING:
    import numpy as np

SOFTWARE = "tokencutseg segment"
"""What our PNG files say wrote them: only such files are overwritten."""


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add this module's command; `command(name, handler)` makes its parser."""
    segment = command("segment", _segment)
    segment.add_argument("images", nargs="+", metavar="IMAGE", help="a file, a folder, or a quoted pattern (a/*.jpg)")
    segment.add_argument("--model", type=Path, metavar="RUN", help="a run's folder (default: the included model)")
    segment.add_argument("--out", type=Path, required=True, metavar="DIR", help="where masks and overlays go")


def _segment(arguments: argparse.Namespace) -> int:
    import tokencutseg
    from tokencutseg.data.images import DataError, read_image
    from tokencutseg.report.notebooks import check_writable

    images, failures = _find_images(arguments.images)
    stems = _output_stems(images)
    for file in (arguments.out / f"{stem}_{kind}.png" for stem in stems for kind in ("mask", "overlay")):
        if file.exists() and not _is_ours(file):
            raise ConfigError(f"{file} is there already and not from an earlier call; choose another folder with --out")
    model = tokencutseg.load(arguments.model)
    check_writable(arguments.out, "--out")
    for stem, image in stems.items():
        try:
            pixels = read_image(image)
        except DataError as error:
            failures.append(str(error))
            continue
        mask = model.predict(pixels)
        _save(_overlay(pixels, mask.astype(bool)), arguments.out / f"{stem}_overlay.png")
        _save(mask.astype("uint8") * 255, arguments.out / f"{stem}_mask.png")
        print(f"{image} -> {arguments.out / f'{stem}_mask.png'}")
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


def _output_stems(images: Sequence[Path]) -> dict[str, Path]:
    """Each image by a name for its files: its own, with a number behind it where that is taken, in any case."""
    stems: dict[str, Path] = {}
    taken = set()
    for image in images:
        stem, number = image.stem, 2
        while stem.lower() in taken:
            stem, number = f"{image.stem}-{number}", number + 1
        taken.add(stem.lower())
        stems[stem] = image
    return stems


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

    try:
        with Image.open(file) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, SyntaxError, ValueError):  # no image, or a broken one
        return False
