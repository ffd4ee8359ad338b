"""One row per image: the raw counts, and the overlap and boundary scores. All summaries are computed from these rows.

Empty masks are decided here, once. If prediction and target are both empty they agree: IoU = Dice = NSD = 1 and
HD95 = 0. If only one of them is, they share nothing: IoU = Dice = NSD = 0 and HD95 is the image's diagonal, longer than
any distance in it.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree
from torch import Tensor

from tokencutseg.data.image_set import ImageSet
from tokencutseg.files import available_cores

COLUMNS_VERSION = 5
"""Part of the name of stored records: raise it when their columns or what these mean change."""
COUNTS = ("tp", "fp", "fn", "tn")
"""Pixels of a mask by prediction and target: lesion in both, only predicted, only there, in neither."""
NATIVE = tuple(f"{name}_native" for name in (*COUNTS, "iou", "dice", "nsd", "hd95"))
DERIVED = ("tn", "iou", "dice", "lesion_fraction", "empty_prediction", "empty_mask", *NATIVE[3:6])
"""What follows from the other columns of records (`with_derived`)."""
DECIMALS = {"nsd": 4, "hd95": 2, "contrast": 4, "nsd_native": 4, "hd95_native": 2}
"""To how many places stored records are read; counts are whole, and what is derived from them is exact."""
NSD_TOLERANCE = 0.02
"""Tolerance of the normalised surface Dice, as a share of the image's diagonal (2.7 px at 96 px, 6.3 px at 224 px).

A choice of this study, wide enough to forgive the stair steps of masks that were drawn at a lower resolution."""


def score(
    predictions: Tensor | np.ndarray, targets: Tensor | np.ndarray, ids: list[str], boundary: bool = True, **labels: Any
) -> pd.DataFrame:
    """Score predictions against reference masks, image by image.

    predictions, targets: (N, S, S) of {0, 1}; 1 is lesion. ids: N different image ids. boundary: also compute `nsd` and
    `hd95`, which cost most of the time. labels: columns that say what these rows are, such as ``train="isic2016"``, one
    value for all rows or N values.

    Returns N rows with the label columns, then `id`, `size` (S), `tp`, `fp`, `fn`, `tn` (pixels), `iou` and `dice` of
    the lesion, `nsd` (share of both boundaries within `NSD_TOLERANCE` of the other), `hd95` (pixels at size S),
    `lesion_fraction` (of the target), `empty_prediction` and `empty_mask`. Raises ValueError where shapes differ, a
    value is neither 0 nor 1, or an id occurs twice.
    """
    prediction, target = _mask(predictions, "predictions"), _mask(targets, "targets")
    if prediction.shape != target.shape or len(ids) != len(target):
        shapes = f"predictions {prediction.shape}, targets {target.shape} and {len(ids)} ids"
        raise ValueError(f"{shapes} must describe the same images at the same size")
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if list(ids).count(i) > 1)
        raise ValueError(f"image id {twice!r} occurs twice in one set; score each image once")
    counts, size = confusion(prediction, target, (1, 2)), target.shape[-1]
    tp, fp, fn, _ = counts
    records = pd.DataFrame({**labels, "id": list(ids), "size": size, **dict(zip(COUNTS, counts, strict=True))})
    for measure in ("iou", "dice"):
        records[measure] = overlap(tp, fp, fn, measure)
    if boundary:
        records[["nsd", "hd95"]] = [boundary_scores(p, t) for p, t in zip(prediction, target, strict=True)]
    return _with_extent(records)


def native_scores(lesion_scores: Tensor, images: ImageSet) -> pd.DataFrame:
    """The scores against the masks as they lie in their files, to whose size the predictions are brought.

    Where the files have the size of the original photographs, this is how the ISIC challenges score. Where they were
    stored at another shape, the mask is first stretched to that of the photograph (`native_sizes`), along one axis and
    by repeating pixels. Masks in no files (synthetic ones) are scored at their own size.

    lesion_scores: (N, S, S) float, p(lesion) − p(skin); stretched bilinearly to the file's size, lesion where positive.

    Returns N rows with `height`, `width` (at which it was scored, in pixels), and `tp`, `fp`, `fn`, `tn`, `iou`,
    `dice`, `nsd`, `hd95`, each with `_native` behind it, decided for empty masks as `score` does. Raises DataError for
    a file that can no longer be read.
    """

    def one(index: int) -> dict[str, float]:
        target = _in_shape(images.native_mask(index), images.native_sizes[index])
        own = lesion_scores[index, None, None].float()
        stretched = torch.nn.functional.interpolate(own, target.shape, mode="bilinear", align_corners=False)
        prediction = stretched[0, 0].numpy() > 0
        tp, fp, fn, tn = confusion(prediction, target)
        iou, dice = (float(overlap(tp, fp, fn, measure)) for measure in ("iou", "dice"))
        values = dict(zip(NATIVE, (tp, fp, fn, tn, iou, dice, *boundary_scores(prediction, target)), strict=True))
        return {"height": target.shape[0], "width": target.shape[1], **values}

    with ThreadPoolExecutor(min(8, available_cores())) as pool:  # decoding lets go of the interpreter
        return pd.DataFrame(list(pool.map(one, range(len(images)))))


def without_derived(records: pd.DataFrame) -> pd.DataFrame:
    """Records as they are committed, a third as large: without the columns `DERIVED`, without the native scores of
    images where these equal those at the network's size, and with the pixels of the reference mask, `lesion`, which all
    runs share, for `fn`. `with_derived` brings all of it back."""
    kept = records.drop(columns=list(DERIVED))
    native = [name for name in NATIVE if name in kept]
    same = kept[native].eq(kept[[name.removesuffix("_native") for name in native]].set_axis(native, axis=1)).all(axis=1)
    for suffix in ("", "_native"):
        kept[f"fn{suffix}"] += kept[f"tp{suffix}"]
    kept = kept.assign(**kept[native].convert_dtypes().mask(same))
    return kept.rename(columns={"fn": "lesion", "fn_native": "lesion_native"})


def with_derived(records: pd.DataFrame) -> pd.DataFrame:
    """The inverse of `without_derived`."""
    found, size = records.copy(), records["size"]
    for suffix in ("", "_native"):
        if f"lesion{suffix}" in found:  # in older records is `fn` itself
            found[f"fn{suffix}"] = found.pop(f"lesion{suffix}") - found[f"tp{suffix}"]
    for name in (*COUNTS[:3], "nsd", "hd95"):
        found[f"{name}_native"] = found[f"{name}_native"].fillna(found[name]).astype(found[name].dtype)
    for suffix, pixels in (("", size**2), ("_native", found["height"] * found["width"])):
        tp, fp, fn = (found[f"{name}{suffix}"] for name in COUNTS[:3])
        found[f"tn{suffix}"] = pixels - tp - fp - fn
        for measure in ("iou", "dice"):
            found[f"{measure}{suffix}"] = overlap(tp, fp, fn, measure)
    return _with_extent(found)


def _with_extent(records: pd.DataFrame) -> pd.DataFrame:
    predicted, lesion = records["tp"] + records["fp"], records["tp"] + records["fn"]
    fraction = lesion / records["size"] ** 2
    return records.assign(lesion_fraction=fraction, empty_prediction=predicted == 0, empty_mask=lesion == 0)


def _in_shape(mask: np.ndarray, native: tuple[int, int]) -> np.ndarray:
    """A mask bool (h, w) stretched along one axis to the shape, not the size, of a photograph (H, W)."""
    (h, w), (H, W) = mask.shape, native
    height, width = max(h, round(w * H / W)), max(w, round(h * W / H))
    return mask[np.arange(height) * h // height][:, np.arange(width) * w // width]


def confusion(prediction: np.ndarray, target: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """How many entries of two bool arrays are tp, fp, fn, tn, counted over `axis` (None: all): (4, …)."""
    cells = (prediction & target, prediction & ~target, ~prediction & target, ~prediction & ~target)
    return np.stack([np.count_nonzero(cell, axis=axis) for cell in cells])


def contrast(images: ImageSet) -> np.ndarray:
    """How far lesion and skin of each image are apart: the difference of their mean colours (Euclidean, each channel in
    [0, 1]) over the pixels' own spread, (N,). NaN where the reference mask is empty or full."""
    assert images.masks is not None, "an image set without masks has no contrast"
    parts = []
    for pixels, masks in zip(images.images.split(64), images.masks.split(64), strict=True):
        x, lesion = pixels.float().flatten(2) / 255, masks.flatten(1)[:, None].bool()  # (n, 3, S²), (n, 1, S²)
        inside, outside = ((x * part).sum(-1, keepdim=True) / part.sum(-1, keepdim=True) for part in (lesion, ~lesion))
        spread = torch.where(lesion, x - inside, x - outside).square().mean(-1).sum(1).sqrt()
        parts.append((inside - outside)[..., 0].norm(dim=1) / spread)
    return torch.cat(parts).numpy()


def overlap(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, measure: str) -> np.ndarray:
    """IoU tp/(tp+fp+fn) or Dice 2tp/(2tp+fp+fn) of counts of any shape, 1 where there is nothing to find or miss."""
    hits = {"iou": 1, "dice": 2}[measure] * np.asarray(tp, dtype=float)
    total = hits + fp + fn
    return np.divide(hits, total, out=np.ones_like(hits), where=total > 0)


def boundary_scores(prediction: np.ndarray, target: np.ndarray) -> tuple[float, float]:
    """Normalised surface Dice and 95 % Hausdorff distance (in pixels) of two masks (H, W) bool.

    Distances run between the centres of boundary pixels: both are what MONAI's `compute_surface_dice` and
    `compute_hausdorff_distance(percentile=95)` give (a test holds them together), in a seventh of the time. NSD:
    Nikolov et al. 2021, doi 10.2196/26151. HD95 is the larger of the two directed 95th percentiles.
    """
    # boundary pixels have a 4-neighbour outside the mask or beyond the image
    diagonal, edges = math.hypot(*target.shape), [np.argwhere(m & ~binary_erosion(m)) for m in (prediction, target)]
    if min(map(len, edges)) == 0:
        return (1.0, 0.0) if max(map(len, edges)) == 0 else (0.0, diagonal)
    forth, back = (KDTree(one).query(other)[0] for one, other in (edges, edges[::-1]))
    near = (forth <= NSD_TOLERANCE * diagonal).sum() + (back <= NSD_TOLERANCE * diagonal).sum()
    return near / (len(forth) + len(back)), float(max(np.percentile(forth, 95), np.percentile(back, 95)))


def _mask(values: Tensor | np.ndarray, name: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"{name} must have shape (N, S, S), not {array.shape}")
    mask = array.astype(bool)
    if not np.array_equal(mask, array):
        hint = "threshold probabilities and divide 0/255 masks first"
        raise ValueError(f"{name} must hold 0 (skin) and 1 (lesion) only; {hint}")
    return mask
