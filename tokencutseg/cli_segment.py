"""`tokencutseg segment`: masks and overlays of images, as PNG files."""

from __future__ import annotations

import argparse
import errno
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokencutseg.config import ConfigError
from tokencutseg.files import atomic_write, note

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
SOFTWARE = "tokencutseg segment"
"""What our PNG files say wrote them: only such files are overwritten, and none is segmented."""
OVERLAY_SIDE = 1600
"""Pixels of the longer side of an overlay, at most: a screen shows no more."""
LONGEST_ASPECT = 4
"""Of longer pictures the note is that a network which sees them as squares is not to be trusted with them."""


def segment(arguments: argparse.Namespace) -> int:
    """Write two PNG files per image, a mask (0 or 255) and an overlay; the exit status."""
    import tokencutseg
    from tokencutseg.data.images import DataError, read_image
    from tokencutseg.models.hardware import Hardware, choose_device
    from tokencutseg.report.notebooks import check_writable

    images, failures = _find_images(arguments.images)
    outputs = {
        image: (arguments.out / f"{name}_mask.png", arguments.out / f"{name}_overlay.png")
        for image, name in zip(images, _names(images), strict=True)
    }
    for file in (file for pair in outputs.values() for file in pair):
        if os.path.exists(file) and _software(file) != SOFTWARE:  # noqa: PTH110 (its own fails on a name too long)
            raise ConfigError(f"{file} is there already and not from an earlier call; choose another folder with --out")
    model = tokencutseg.load(arguments.model, segments=True).to(choose_device(arguments.device))
    check_writable(arguments.out, "--out")
    print(f"device: {Hardware(arguments.device, '32-true').describe()}", flush=True)
    for image, (mask_file, overlay_file) in outputs.items():
        try:
            pixels = read_image(image)
        except DataError as error:
            failures.append(str(error))
            continue
        mask = model.predict(pixels).astype(bool)
        try:
            _save(_overlay(pixels, mask), overlay_file)  # first, as its name is the longer one
            _save(mask.astype("uint8") * 255, mask_file)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            failures.append(f"{image} has a name too long for those of its mask and overlay; shorten it")
            continue
        share = f"lesion: {100 * mask.mean():.3g} % of the picture" if mask.any() else "no lesion found"
        print(f"{image} -> {mask_file} ({share})", flush=True)
        if (pictures := _opened(image, lambda file: getattr(file, "n_frames", 1)) or 1) > 1:
            note(f"{image} holds {pictures} pictures, of which the first was segmented; save the others as files")
        if max(mask.shape) > LONGEST_ASPECT * min(mask.shape):
            size = f"{mask.shape[1]}×{mask.shape[0]}"
            note(f"{image} is {size} pixels and the network sees it squeezed to a square; cut it to the lesion")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _find_images(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that the arguments mean, each once and none of ours, and a sentence for each that means none."""
    found: dict[Path, Path] = {}  # by real path
    ours, failures = [], []
    for argument in arguments:
        try:
            files = _files(argument)
        except OSError as error:
            failures.append(f"{argument} cannot be read ({error.strerror}); check the path and its permissions")
            continue
        if not files:
            failures.append(f"{argument} holds no image" if Path(argument).is_dir() else f"no file matches {argument}")
        for file in files:
            if _software(file) == SOFTWARE:
                ours.append(file.name)
            else:
                found.setdefault(Path(os.path.realpath(file)), file)
    if ours:
        note(f"skipped, as written by earlier calls: {', '.join(dict.fromkeys(ours))}")
    return list(found.values()), failures


def _files(argument: str) -> list[Path]:
    """The images of a folder, the files that match a pattern, or one file, which may be missing."""
    from tokencutseg.data.images import IMAGE_SUFFIXES
    from tokencutseg.data.pairing import is_image, is_visible

    path = Path(argument)
    if path.is_dir():
        there = [file for file in sorted(path.iterdir()) if file.is_file() and is_visible(file.name)]
        # a file of a rare kind is an image where it can be opened, as one that is named itself
        rare = {file for file in there if file.suffix.lower() not in IMAGE_SUFFIXES and _software(file) is not None}
        files = [file for file in there if is_image(file) or file in rare]
        if others := [file.name for file in there if file not in files]:
            note(f"skipped in {path}, as no images: {', '.join(others)}")
        if folders := [file.name for file in sorted(path.iterdir()) if file.is_dir() and is_visible(file.name)]:
            note(f"skipped in {path}, as folders: {', '.join(folders)}; name them, or '{path}/**/*.png'")
        return files
    if path.exists() or not glob.has_magic(argument):
        return [path]  # reported when it is read, if it is missing
    matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    return [Path(match) for match in matches if Path(match).is_file()]


def _names(images: Sequence[Path]) -> list[str]:
    """Names of the images' own, in any case of letters: the stem, where that is shared the whole name, else the path
    below their common folder, else that with a number."""
    paths = [image.absolute() for image in images]
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""
    below = ["_".join(path.relative_to(root).parts) for path in paths]
    numbered = [f"{number}_{name}" for number, name in enumerate(below, 1)]
    names: dict[int, str] = {}  # by the image's place
    for choices in ([path.stem for path in paths], [path.name for path in paths], below, numbered):
        taken = Counter(name.lower() for name in (*choices, *names.values()))
        names |= {n: name for n, name in enumerate(choices) if n not in names and taken[name.lower()] == 1}
    return [names[n] for n in range(len(paths))]


def _overlay(pixels: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """The image uint8 (H, W, 3), made smaller where it is large, with the outline of the mask bool (H, W) drawn just
    inside it."""
    import numpy as np
    from PIL import Image
    from scipy.ndimage import binary_erosion

    picture = Image.fromarray(pixels)
    picture.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
    drawn = np.array(picture)
    lesion = np.array(Image.fromarray(lesion).resize(picture.size, Image.Resampling.NEAREST))
    width = max(1, round(max(lesion.shape) / 200))
    drawn[lesion & ~binary_erosion(lesion, iterations=width)] = (0, 190, 255)  # no skin has this blue
    return drawn


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", SOFTWARE)
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=text)


def _software(file: Path) -> str | None:
    """What an image file says wrote it; None for no image."""
    return _opened(file, lambda image: str(image.info.get("Software", "")))


def _opened(file: Path, ask: Callable[[Any], T]) -> T | None:
    """What an image file answers; None for no image, a broken one, or one that is too large."""
    from PIL import Image

    from tokencutseg.data.images import UNREADABLE

    try:
        with Image.open(file) as image:
            return ask(image)
    except UNREADABLE:
        return None
