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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pooch
import torch
from torch import Tensor
from tqdm import tqdm

from tokencutseg.data.datasets import Sample, Split
from tokencutseg.data.images import DataError, file_size, read_image, read_mask
from tokencutseg.files import available_cores

_DECODING = 1
"""Raise it when reading or resizing changes, so that older caches are not used."""


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
    """(H, W) in pixels of each photograph: of its file, unless a manifest says otherwise."""
    mask_files: list[Path] | None = None
    """Where each mask lies at its native size; None for masks that are in no files, and for none."""
    clusters: list[str | None] | None = None
    """What images share, the patient or the lesion, where it is known of any."""

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
        return self.clusters and [cluster or own for own, cluster in zip(self.ids, self.clusters, strict=True)]

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

    def subset(self, indices: Sequence[int] | Tensor | np.ndarray) -> ImageSet:
        """The images at `indices`, in that order. A part chosen from a complete split counts as complete."""
        index = torch.as_tensor(np.asarray(indices), dtype=torch.long)
        return ImageSet(
            self.dataset,
            self.split,
            [self.ids[i] for i in index.tolist()],
            self.images[index],
            None if self.masks is None else self.masks[index],
            len(index) if self.complete and self.expected is not None else self.expected,
            [self.native_sizes[i] for i in index.tolist()],
            None if self.mask_files is None else [self.mask_files[i] for i in index.tolist()],
            None if self.clusters is None else [self.clusters[i] for i in index.tolist()],
        )

    @staticmethod
    def concatenate(sets: Sequence[ImageSet]) -> ImageSet:
        """One set after the other; masks only if all have them, complete only if all are.

        Raises DataError for no set at all or for different image sizes.
        """
        sizes = {tuple(s.images.shape[1:]) for s in sets}
        if len(sizes) != 1:
            raise DataError(f"cannot join image sets of the sizes {sorted(sizes)}; load them all at one size")
        return ImageSet(
            "+".join(dict.fromkeys(s.dataset for s in sets)),
            "+".join(dict.fromkeys(s.split for s in sets)),
            [i for s in sets for i in s.ids],
            torch.cat([s.images for s in sets]),
            None if any(s.masks is None for s in sets) else torch.cat([s.masks for s in sets]),
            None
            if all(s.expected is None for s in sets)
            else sum(len(s) if s.expected is None else s.expected for s in sets),
            [size for s in sets for size in s.native_sizes],
            None if any(s.mask_files is None for s in sets) else [file for s in sets for file in s.mask_files],
            None
            if all(s.clusters is None for s in sets)
            else [cluster for s in sets for cluster in s.clusters or [None] * len(s)],
        )


def default_cache() -> Path:
    """Where decoded pixels are kept: the environment variable TOKENCUTSEG_CACHE, else the user's cache folder."""
    return Path(os.environ.get("TOKENCUTSEG_CACHE") or pooch.os_cache("tokencutseg"))


def load_split(split: Split, size: int, cache: Path | None = None) -> ImageSet:
    """The split at `size` × `size` pixels (images bilinear, masks nearest, aspect not kept).

    The first call decodes the files and stores the pixels under `cache` (default `default_cache()`); later calls map
    that file into memory, until an id, a file's length or its time of change differs. Old entries are not removed.
    Raises DataError for an unreadable file and for a mask that has not its image's size.
    """
    arrays = cached_arrays(_key(split, size), lambda: _decode(split, size), cache)
    return ImageSet(
        split.dataset,
        split.name,
        [s.id for s in split.samples],
        torch.from_numpy(arrays["images"]),
        torch.from_numpy(arrays["masks"]) if "masks" in arrays else None,
        split.expected,
        [s.native_size or (int(h), int(w)) for s, (h, w) in zip(split.samples, arrays["native_sizes"], strict=True)],
        [s.mask for s in split.samples] if "masks" in arrays else None,
        [s.cluster for s in split.samples] if any(s.cluster for s in split.samples) else None,
    )


def cached_arrays(
    key: str, build: Callable[[], dict[str, np.ndarray]], cache: Path | None = None
) -> dict[str, np.ndarray]:
    """The arrays that `build` makes, kept as .npy files in `cache`/`key` and memory-mapped copy-on-write.

    An entry is a folder that is renamed into place when it is whole, so several processes may build the same one: the
    first wins and the others use theirs. Where the cache cannot be written, a warning says so and the arrays stay in
    memory.
    """
    cache = cache or default_cache()
    entry = cache / key
    if entry.is_dir():
        try:
            return _mapped(entry)
        except (OSError, ValueError) as error:  # cut short by a full disk or a power failure
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
            try:
                whole.rename(entry)
            except OSError:
                if not entry.is_dir():  # otherwise another process was faster, with the same arrays
                    raise
        return _mapped(entry)
    except OSError as error:
        warnings.warn(
            f"cannot keep decoded images in {cache} ({error}); they stay in memory and will be decoded again "
            f"next time. Set TOKENCUTSEG_CACHE to a folder that can be written",
            stacklevel=2,
        )
        return arrays


def _mapped(entry: Path) -> dict[str, np.ndarray]:
    # mode "c", copy on write: PyTorch warns about read-only arrays, and nothing may change the cache
    return {path.stem: np.load(path, mmap_mode="c") for path in sorted(entry.glob("*.npy"))}


def _key(split: Split, size: int) -> str:
    digest = hashlib.sha256(f"{_DECODING} {size}".encode())
    for sample in split.samples:
        for path in (sample.image, sample.mask):
            if path is not None:
                stat = path.stat()
                digest.update(f"\n{sample.id} {stat.st_size} {stat.st_mtime_ns}".encode())
    return f"{split.dataset}-{split.name}-{size}-{digest.hexdigest()[:16]}"


def _decode(split: Split, size: int) -> dict[str, np.ndarray]:
    n, labelled = len(split.samples), split.samples[0].mask is not None
    arrays = {"images": np.empty((n, 3, size, size), np.uint8), "native_sizes": np.empty((n, 2), np.int64)}
    if labelled:
        arrays["masks"] = np.empty((n, size, size), np.uint8)

    def fill(index: int, sample: Sample) -> None:
        arrays["native_sizes"][index] = file_size(sample.image)
        arrays["images"][index] = read_image(sample.image, size).transpose(2, 0, 1)
        if labelled:
            _check_sizes(sample)
            arrays["masks"][index] = read_mask(sample.mask, size)

    # threads, since Pillow lets go of the interpreter while it decodes
    with ThreadPoolExecutor(min(8, available_cores())) as pool:
        done = pool.map(fill, range(n), split.samples)
        for _ in tqdm(done, desc=f"decoding {split.dataset}/{split.name}", total=n, unit="image", disable=None):
            pass
    if labelled and not arrays["masks"].any():
        raise DataError(
            f"all {n} masks of {split.dataset}/{split.name} are empty, such as {split.samples[0].mask}; "
            f"lesion must be brighter than half of the range, or 1 in masks of 0 and 1"
        )
    return arrays


def _check_sizes(sample: Sample) -> None:
    image, mask = file_size(sample.image), file_size(sample.mask)
    if image != mask:
        raise DataError(
            f"{sample.mask} is {mask[1]}×{mask[0]} pixels, but its image {sample.image} is "
            f"{image[1]}×{image[0]}; resize the mask to its image or get both again"
        )
