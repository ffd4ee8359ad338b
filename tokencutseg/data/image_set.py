"""A split in memory: uint8 pixels at the network's size, decoded once and memory-mapped ever after."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import torch
from torch import Tensor
from tqdm import tqdm

from tokencutseg.data.datasets import Split
from tokencutseg.data.images import (
    QUARTER_TURNS,
    DataError,
    lesion_threshold,
    mask_values,
    read_header,
    read_image,
    read_mask,
    summed_up,
)
from tokencutseg.files import available_cores

_DECODING = 2
"""Raise it when reading or resizing changes, so that older caches are not used."""
_PER_IMAGE = ("ids", "native_sizes", "mask_files", "clusters", "groups")


@dataclass(eq=False)
class ImageSet:
    """N square images of one split."""

    dataset: str
    split: str
    ids: list[str]
    images: Tensor
    """uint8 (N, 3, S, S), RGB. It may be a memory-mapped file, opened copy-on-write."""
    masks: Tensor | None
    """uint8 (N, S, S), 1 is lesion; None where there are none."""
    expected: int | None
    """How many images the official split has; None where there is no official count."""
    native_sizes: list[tuple[int, int]]
    """(H, W) in pixels of each photograph: of its file, unless a table says otherwise."""
    mask_files: list[tuple[Path, int]] | None = None
    """Where each mask lies at its native size, and the value above which it is lesion; None for masks in no files."""
    clusters: list[str | None] | None = None
    """What images share, the patient or the lesion, where it is known of any."""
    groups: list[str | None] | None = None
    """The diagnosis of each image, where it is known of any."""
    notes: list[str] = field(default_factory=list)
    """What was chosen while reading, and what looks wrong with the masks."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def complete(self) -> bool:
        """False where the official split has more images than this one."""
        return self.expected is None or len(self) == self.expected

    @property
    def units(self) -> list[str] | None:
        """What is independent of each other: the patient or lesion of each image, else the image itself, by its id;
        None where nothing is known of any."""
        if self.clusters is None:
            return None
        return [cluster or own for own, cluster in zip(self.ids, self.clusters, strict=True)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids and pixels: equal for equal data, wherever its files lie."""
        digest = hashlib.sha256("\n".join(self.ids).encode())
        for pixels in (self.images, self.masks):
            if pixels is not None:
                digest.update(repr(tuple(pixels.shape)).encode())
                digest.update(pixels.contiguous().numpy())
        return digest.hexdigest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over all that a score may depend on: the fingerprint, native sizes and what is independent."""
        known = json.dumps([self.fingerprint, [list(map(int, size)) for size in self.native_sizes], self.units])
        return hashlib.sha256(known.encode()).hexdigest()

    def native_mask(self, index: int) -> np.ndarray:
        """The mask of one image as bool (H, W), from its file where it has one. Raises DataError if that is gone."""
        if self.mask_files is None:
            assert self.masks is not None, "a set without masks has no native ones"
            return self.masks[index].bool().numpy()
        path, threshold = self.mask_files[index]
        return read_mask(path, threshold=threshold)

    def subset(self, indices: Sequence[int] | Tensor | np.ndarray) -> ImageSet:
        """The images at `indices`, in that order. A part chosen from a complete split counts as complete."""
        index = torch.as_tensor(np.asarray(indices), dtype=torch.long)
        chosen: dict[str, Any] = {}
        for name in _PER_IMAGE:
            values = getattr(self, name)
            chosen[name] = values and [values[i] for i in index.tolist()]
        masks = None if self.masks is None else self.masks[index]
        expected = len(index) if self.complete and self.expected is not None else self.expected
        return replace(self, images=self.images[index], masks=masks, expected=expected, **chosen)


def default_cache() -> Path:
    """Where decoded pixels are kept: the environment variable TOKENCUTSEG_CACHE, else the user's cache folder."""
    return Path(os.environ.get("TOKENCUTSEG_CACHE") or pooch.os_cache("tokencutseg"))


def load_split(split: Split, size: int) -> ImageSet:
    """The split at `size` × `size` pixels (images bilinear, masks nearest, aspect not kept).

    The first call decodes the files and stores the pixels under `default_cache()`; later calls map
    that file into memory, until an id, a file's length or its time of change differs. Old entries are not removed.
    Raises DataError that names every unreadable file, every mask that has not its image's size, and masks whose values
    can be read in two ways.
    """
    digest, samples = hashlib.sha256(f"{_DECODING} {size}".encode()), split.samples
    try:
        for own, stat in ((sample.id, path.stat()) for sample in samples for path in sample.files):
            digest.update(f"\n{own} {stat.st_size} {stat.st_mtime_ns}".encode())
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror})") from error
    key = f"{split.dataset}-{split.name}-{size}-{digest.hexdigest()[:16]}"
    arrays = cached_arrays(key, lambda: _decode(split, size))
    about = json.loads(str(arrays["about"][0]))
    images, masks = (torch.from_numpy(arrays[name]) if name in arrays else None for name in ("images", "masks"))
    sizes = [s.native_size or (int(h), int(w)) for s, (h, w) in zip(samples, arrays["native_sizes"], strict=True)]
    loaded = ImageSet(split.dataset, split.name, [s.id for s in samples], images, masks, split.expected, sizes)
    loaded.notes = about["notes"]
    if masks is not None:
        loaded.mask_files = [(s.mask, about["threshold"]) for s in samples if s.mask]
    if any(s.cluster for s in samples):
        loaded.clusters = [s.cluster for s in samples]
    if any(s.group for s in samples):
        loaded.groups = [s.group for s in samples]
    return loaded


def cached_arrays(key: str, build: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `build` makes, kept as .npy files in `default_cache()`/`key` and memory-mapped copy-on-write.

    An entry is a folder that is renamed into place when it is whole, so several processes may build the same one: the
    first wins and the others use theirs. Where the cache cannot be written, a warning says so and the arrays stay in
    memory.
    """
    cache = default_cache()
    entry = cache / key
    if entry.is_dir():
        try:
            return _mapped(entry)
        except (OSError, ValueError) as error:  # cut short by a full disk, or parts of it removed
            warnings.warn(f"cache entry {entry} is damaged ({error}); building it again", stacklevel=2)
            shutil.rmtree(entry, ignore_errors=True)
    arrays = build()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".building-", ignore_cleanup_errors=True) as folder:
            whole = Path(folder) / key
            whole.mkdir()
            for name, array in arrays.items():
                np.save(whole / f"{name}.npy", array)
            (whole / "names.txt").write_text(" ".join(arrays))
            try:
                whole.rename(entry)
            except OSError:
                if not entry.is_dir():  # otherwise another process was faster, with the same arrays
                    raise
        return _mapped(entry)
    except OSError as error:
        said = f"cannot keep decoded images in {cache} ({error}): they stay in memory and are decoded again next time"
        warnings.warn(f"{said}; set TOKENCUTSEG_CACHE to a folder that can be written", stacklevel=2)
        return arrays


def _mapped(entry: Path) -> dict[str, np.ndarray]:
    # mode "c", copy on write: PyTorch warns about read-only arrays, and nothing may change the cache
    arrays = {path.stem: np.load(path, mmap_mode="c") for path in sorted(entry.glob("*.npy"))}
    names = entry / "names.txt"
    if names.is_file() and {*names.read_text().split()} != {*arrays}:  # some clusters remove files that nobody reads
        raise ValueError("parts of it are gone")
    return arrays


def _decode(split: Split, size: int) -> dict[str, np.ndarray]:
    n, samples, name = len(split.samples), split.samples, f"{split.dataset}/{split.name}"
    labelled = samples[0].mask is not None
    images, counts = np.empty((n, 3, size, size), np.uint8), np.zeros((n, 256), np.int64)
    values = np.empty((n if labelled else 0, size, size), np.uint8)
    stored, drawn = np.zeros((n, 2), np.int64), np.zeros((n, 2), np.int64)  # (H, W) of images and masks
    orientation = np.ones(n, np.int64)

    def read(job: int) -> str:  # the image of a sample, or its mask
        index, sample = job % n, samples[job % n]
        try:
            if job < n:
                *stored[index], orientation[index] = read_header(sample.image)
                images[index] = read_image(sample.image, size).transpose(2, 0, 1)
            elif sample.mask is not None:
                *drawn[index], _ = read_header(sample.mask)
                values[index], counts[index] = mask_values(sample.mask, size)
        except DataError as error:
            return str(error)
        return ""

    files, notes = n * (1 + labelled), []
    # threads, since Pillow lets go of the interpreter while it decodes
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        bar = tqdm(pool.map(read, range(files)), desc=f"decoding {name}", total=files, unit="file", disable=None)
        problems = [problem for problem in bar if problem]
    turned, quarter = orientation != 1, np.isin(orientation, QUARTER_TURNS)
    shown = np.where(quarter[:, None], stored[:, ::-1], stored)
    fits_stored, fits_shown = (drawn == stored).all(1), (drawn == shown).all(1)
    if (fits_stored & ~fits_shown).any() and not (quarter & fits_shown & ~fits_stored).any():
        notes.append(f"{turned.sum()} images are left as they are stored, not turned by EXIF: so the masks fit them")
        for index in np.flatnonzero(turned):
            images[index] = read_image(samples[index].image, size, upright=False).transpose(2, 0, 1)
        shown = stored
    elif turned.any():
        notes.append(f"{turned.sum()} images are turned upright, as their EXIF orientation says")
    for index in np.flatnonzero((drawn != shown).any(1) & drawn.all(1) & shown.all(1)):
        (h, w), (H, W), sample = drawn[index], shown[index], samples[index]
        exif = " turned upright by its EXIF orientation" if turned[index] else ""
        differ = f"{sample.mask} is {w}×{h} pixels, but its image {sample.image}{exif} is {W}×{H}"
        problems.append(f"{differ}; resize the mask to its image or get both again")
    if problems:
        raise DataError(summed_up(problems))
    arrays, threshold = {"images": images, "native_sizes": shown}, 0
    if labelled:
        threshold, note = lesion_threshold(counts, f"{name} in {Path(str(samples[0].mask)).parent}")
        arrays["masks"] = (values > threshold).astype(np.uint8)
        notes += [note] * bool(note) + implausible(arrays["masks"])
        if split.name == "train" and not arrays["masks"].any():
            raise DataError(f"all {n} masks of {name} are empty, such as {samples[0].mask}: nothing can be learnt")
    about = {"threshold": threshold, "notes": [f"{name}: {note}" for note in notes]}
    return arrays | {"about": np.array([json.dumps(about)])}


def implausible(masks: np.ndarray) -> list[str]:
    """What looks wrong with the masks (N, S, S) of a split, in words: nothing where they look like lesions on skin.

    Of the masks of ISIC 2016 to 2018 and HAM10000 less than 1 % reach along three quarters of the border, and none is
    empty; here more than 5 % are told.
    """
    n, share = len(masks), masks.mean((1, 2))
    border = np.concatenate([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], 1).mean(1)
    told = {
        "cover the whole image": share > 0.98,
        "cover its border (are lesion and skin exchanged?)": (border > 0.75) & (share <= 0.98),
        "are empty": share == 0,
        "cover less than 0.2 % of it": (share > 0) & (share < 0.002),
    }
    many = max(0.05 * n, min(2, n - 1))
    return [f"{which.sum()} of {n} masks {what}" for what, which in told.items() if which.sum() > many]
