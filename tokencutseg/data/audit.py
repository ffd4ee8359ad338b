"""Which images are in two places at once: by id, by identical pixels, or as an edited copy of one picture.

The yearly ISIC sets overlap each other, also across training and test (Cassidy et al. 2022, Analysis of the ISIC image
datasets, doi 10.1016/j.media.2021.102305). Ids and checksums do not tell the whole of it: some pictures were published
again under another id with other colours, a slightly other crop, or turned.

`overlaps` finds each pair once; `both_ways` is the same list as a symmetric frame, where every question is a query:

    pairs = both_ways(source.overlaps)
    pairs[pairs["id_1"] == "ISIC_0012152"]                       # every copy of one image
    between(pairs, ("isic2017", "train"), ("isic2017", "test"))  # test images that the training split holds too
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from torch import Tensor
from tqdm import tqdm

from tokencutseg.data.datasets import POOL_SPLITS, global_id
from tokencutseg.data.image_set import ImageSet

if TYPE_CHECKING:
    from tokencutseg.data.source import DataSource

Sets = Mapping[tuple[str, str], ImageSet]
"""{(dataset, split): images}"""
COLUMNS = ["dataset_1", "split_1", "id_1", "dataset_2", "split_2", "id_2", "kind", "distance"]
HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
MAX_DISTANCE = 60
"""Bits of 256 in which two copies of one picture may differ; unrelated pictures differ in about 128. Chosen by eye on
9,800 images of ISIC 2016, ISIC 2017 and HAM10000 at 96 pixels: each of the 33 pairs up to 60 shows one and the same
lesion. A few more such pairs lie between 60 and 80, but there they mix with pairs that only look alike."""
FRAMES = (3 / 4, 2 / 3)
"""Short side over long side of photographs, where a labelled image is stored as a square and may have been squashed."""


def overlaps(sets: Sets, max_distance: int = MAX_DISTANCE, progress: bool = False) -> pd.DataFrame:
    """Every pair of images, from two sets or from one, that is the same by id, content or appearance.

    Near duplicates need one way of resizing for all sets, as one `load_split` gives. They may differ in `max_distance`
    of 256 hash bits (see `appearance`).

    Returns one row per pair, the earlier set first, with `COLUMNS`. `kind` is the first that holds of "same id", "same
    content" (identical pixels at the stored size) and "near duplicate" (as one of them or any of its flips and quarter
    turns; also as its central square where the other one is a square, since some collections were published as such
    crops; other crops are not found). `distance` is in hash bits: 0 for identical pixels, NaN for a shared id whose
    images are further apart than `max_distance`.
    """
    owner = [(*key, own) for key, images in sets.items() for own in images.ids]
    distance: dict[tuple[int, int], float] = {}
    if owner:
        hashes = np.concatenate([appearance(images.images, progress) for images in sets.values()])
        found = list(_close_pairs(hashes, hashes[:, 0], max_distance, progress, below=True))
        for i, j, d in found + _central_pairs(sets, hashes[:, 0], max_distance, progress):
            distance[i, j] = min(distance.get((i, j), HASH_BITS), float(d))
    same_content = set(_equal_pairs([_content(image) for images in sets.values() for image in images.images]))
    same_id = set(_equal_pairs([global_id(dataset, own) for dataset, _, own in owner]))
    distance |= dict.fromkeys(same_content, 0.0)
    rows = []
    for i, j in sorted(same_id | distance.keys()):
        kind = "same id" if (i, j) in same_id else "same content" if (i, j) in same_content else "near duplicate"
        rows.append((*owner[i], *owner[j], kind, distance.get((i, j), np.nan)))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"distance": float})


def both_ways(pairs: pd.DataFrame) -> pd.DataFrame:
    """The symmetric frame of `overlaps`' list: each pair in both directions, once each. Such a frame is returned as it
    is."""
    swapped = {f"{name}_{i}": f"{name}_{3 - i}" for name in ("dataset", "split", "id") for i in (1, 2)}
    return pd.concat([pairs, pairs.rename(columns=swapped)]).drop_duplicates(COLUMNS[:6], ignore_index=True)


def between(pairs: pd.DataFrame, one: tuple[str, str], two: tuple[str, str]) -> pd.DataFrame:
    """The pairs of an image of the split `one` (first) and an image of `two` (second), each once; splits are given as
    (dataset, split)."""
    pairs = both_ways(pairs)
    chosen = (pairs[["dataset_1", "split_1", "dataset_2", "split_2"]] == [*one, *two]).all(axis=1)
    return pairs[chosen & (pairs["id_1"] < pairs["id_2"]) if one == two else chosen]


def pool_pairs(source: DataSource, pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs of one of the unlabelled images of self-supervised stages (first) and a scored image (second)."""
    pairs = both_ways(pairs)
    left_out = {(image["dataset"], image["split"], image["id"]) for image in source.unlabelled_exclusions}
    first = zip(pairs["dataset_1"], pairs["split_1"], pairs["id_1"], strict=True)
    used = np.array([split in POOL_SPLITS and (d, split, i) not in left_out for d, split, i in first], bool)
    return pairs[used & pairs["split_2"].isin(["validation", "test"])]


def learnt_pairs(source: DataSource, pairs: pd.DataFrame, train: str, test: str) -> pd.DataFrame:
    """The pairs of an image that training on `train` has seen (first) and a test image of `test` (second): first is in
    its training split or among the unlabelled images of self-supervised stages."""
    labelled, pool = between(pairs, (train, "train"), (test, "test")), pool_pairs(source, pairs)
    pool = pool[(pool["dataset_2"] == test) & (pool["split_2"] == "test")]
    # an unlabelled image may be one of the training split, under its id in another dataset: a pair counts once
    return pd.concat([pool, labelled]).drop_duplicates(["id_1", "id_2", "kind"])


def seen_in_training(source: DataSource, train: str, test: str) -> set[str]:
    """Ids of the test images of `test` that training on `train` has seen, by id, content or appearance."""
    return set(learnt_pairs(source, source.overlaps, train, test)["id_2"])


def appearance(images: Tensor, progress: bool = False) -> np.ndarray:
    """A perceptual hash of each image and its 8 flips and quarter turns: (N, 8, 4) uint64, the image itself first.

    A plain DCT hash looks at coarse structure only, where most photographs of one small mole on plain skin look alike.
    So each image (uint8 (N, 3, S, S)) is first made grey, 64 × 64, and locally normalised: minus the mean around each
    pixel and divided by the spread there. Then colour and lighting play no part, and skin texture and hairs count as
    much as the lesion. One transform serves all orientations: a flip changes the sign of every second coefficient, and
    a transposed image has transposed ones.
    """
    hashes = np.empty((len(images), 8, HASH_BITS // 64), np.uint64)
    sign = (-1.0) ** np.arange(HASH_SIDE)
    blocks = range(0, len(images), 256)
    for start in tqdm(blocks, desc="hashing", unit="block of 256 images", disable=not progress):
        grey = _locally_normalised(images[start : start + 256]).astype(float)
        low = dctn(grey, axes=(1, 2))[:, :HASH_SIDE, :HASH_SIDE]  # (B, vertical, horizontal) frequencies
        for k in range(8):
            turned = low * sign if k >= 4 else low  # mirrored, then turned counter-clockwise k times
            turned = turned.swapaxes(1, 2) if k % 2 else turned
            turned = turned * (sign[:, None] if k % 4 in (1, 2) else 1) * (sign if k % 4 in (2, 3) else 1)
            bits = turned > np.median(turned, axis=(1, 2), keepdims=True)
            hashes[start : start + 256, k] = np.packbits(bits.reshape(len(bits), -1), axis=1).view(np.uint64)
    return hashes


def _locally_normalised(images: Tensor) -> np.ndarray:
    """uint8 (N, 3, S, S) → uint8 (N, side, side), the side at which the DCT is taken; 128 is the local mean."""
    side, spread, floor = 4 * HASH_SIDE, (0, 4, 4), 2.0  # the floor, in grey levels, keeps noise from being amplified
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R 601 luma
    luma = (images.float() * weights).sum(1, keepdim=True)
    grey = F.interpolate(luma, size=(side, side), mode="bilinear", antialias=True)[:, 0].numpy()
    detail = grey - gaussian_filter(grey, spread)
    detail /= np.sqrt(gaussian_filter(detail**2, spread)) + floor
    return np.clip(128 + 32 * detail, 0, 255).astype(np.uint8)


def _central_pairs(sets: Sets, plain: np.ndarray, max_distance: int, progress: bool) -> list[tuple[int, int, int]]:
    """(i, j, bits that differ), i < j, where the central square of one photograph is near another image, itself a
    square. `plain` (N, 4) are the hashes of the images as they are."""
    parts, owner, squares, index = [], [], [], -1
    for images in sets.values():
        for image, (height, width) in zip(images.images, images.native_sizes, strict=True):
            index, ratio = index + 1, min(height, width) / max(height, width)
            if ratio >= 0.95:
                squares.append(index)
            for share in [ratio] if ratio < 0.95 else FRAMES if images.masks is not None else []:
                parts.append((image, share, height > width))
                owner.append(index)
    if not parts or not squares:
        return []
    blocks = [parts[start : start + 256] for start in range(0, len(parts), 256)]
    crops = tqdm(blocks, desc="hashing crops", unit="block of 256 images", disable=not progress)
    hashes = np.concatenate([appearance(torch.stack([_central(*one) for one in block])) for block in crops])
    found = [(owner[a], squares[b], d) for a, b, d in _close_pairs(hashes, plain[squares], max_distance, progress)]
    return [(min(i, j), max(i, j), d) for i, j, d in found if i != j]


def _central(image: Tensor, share: float, upright: bool) -> Tensor:
    """The central square of a photograph that was squashed to uint8 (3, S, S), at the same size; `share` is its short
    side over its long one, `upright` whether that one is its height."""
    S = image.shape[-1]
    kept = max(1, round(share * S))
    start = (S - kept) // 2
    crop = image[:, start : start + kept] if upright else image[:, :, start : start + kept]
    return F.interpolate(crop[None].float(), size=(S, S), mode="bilinear", antialias=True)[0].round().byte()


def _close_pairs(
    turned: np.ndarray, plain: np.ndarray, max_distance: int, progress: bool, below: bool = False
) -> Iterator[tuple[int, int, int]]:
    """(i, j, bits that differ) where any orientation of `turned` (M, 8, 4) i is within `max_distance` of `plain` (N, 4)
    j; `below`: i < j alone."""
    rows = 128  # as many at once as keep the intermediate arrays in the processor's cache
    for start in tqdm(range(0, len(turned), rows), desc="comparing", unit="block of 128 images", disable=not progress):
        first = start if below else 0
        block, others = turned[start : start + rows], plain[first:]
        nearest = np.full((len(block), len(others)), HASH_BITS, np.uint16)
        for k in range(block.shape[1]):
            differing = np.zeros_like(nearest)
            for word in range(block.shape[2]):
                differing += np.bitwise_count(block[:, None, k, word] ^ others[None, :, word])
            np.minimum(nearest, differing, out=nearest)
        close = nearest <= max_distance
        i, j = np.nonzero(np.triu(close, k=1) if below else close)
        yield from zip((i + start).tolist(), (j + first).tolist(), nearest[i, j].tolist(), strict=True)


def _content(image: Tensor) -> bytes:
    return hashlib.sha256(repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).digest()


def _equal_pairs(values: list) -> Iterator[tuple[int, int]]:
    """(i, j), i < j, for all equal values."""
    places = pd.Series(range(len(values))).groupby(values, sort=False)
    return (pair for _, equal in places for pair in itertools.combinations(equal.tolist(), 2))
