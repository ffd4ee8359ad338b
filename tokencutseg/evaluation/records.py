"""One row per image: the raw counts, the overlap and boundary scores, and the labels the row is looked up by.

Everything that the study says about segmentation is computed from these rows (`tokencutseg.evaluation.summaries`), so
that any definition of a mean can be had later without predicting again.

Empty masks are decided here, once. If prediction and target are both empty they agree: IoU = Dice = NSD = 1 and
HD95 = 0. If only one of them is, they share nothing: IoU = Dice = NSD = 0 and HD95 is the image's diagonal, longer than
any distance in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.spatial import KDTree

from tokencutseg.data.image_set import ImageSet

NSD_TOLERANCE = 0.02
"""Tolerance of the normalised surface Dice, as a share of the image's diagonal (2.7 px at 96 px, 6.3 px at 224 px).

A choice of this study, wide enough to forgive the stair steps of masks that were drawn at a lower resolution."""


def score(predictions: torch.Tensor | np.ndarray, targets: torch.Tensor | np.ndarray, ids: list[str],
          boundary: bool = True, native_sizes: Sequence[tuple[int, int]] | None = None, **labels: Any) -> pd.DataFrame:
    """Score `predictions` against `targets`, image by image.

    Args:
        predictions: (N, S, S) of {0, 1}; 1 is lesion.
        targets: the same for the reference masks.
        ids: N different image ids.
        boundary: also compute the boundary measures `nsd` and `hd95` (they cost most of the time).
        native_sizes: (H, W) in pixels of each image's file, for the scores at its own aspect.
        labels: columns that say what these rows are, such as ``train="isic2016"``, one value for all rows or N values.

    Returns:
        A frame of N rows with the label columns, then `id`, `size` (S), `tp`, `fp`, `fn`, `tn` (pixels), `iou` and
        `dice` of the lesion, `nsd` (share of both boundaries within `NSD_TOLERANCE` of the other), `hd95` (pixels at
        size S), `lesion_fraction` (of the target), `empty_prediction` and `empty_mask`. With `native_sizes` also
        `height` and `width`, and `nsd_native` and `hd95_native`: the same boundaries with the distances that they have
        in the image's file, in its pixels. Counts need no such twin: stretching a square image to its own aspect
        multiplies all four by height · width / S², and IoU and Dice stay what they are.

    Raises:
        ValueError: if shapes differ, a value is neither 0 nor 1, or an id occurs twice.
    """
    prediction, target = _mask(predictions, "predictions"), _mask(targets, "targets")
    if prediction.shape != target.shape or len(ids) != len(target):
        raise ValueError(f"predictions {prediction.shape}, targets {target.shape} and {len(ids)} ids must describe the "
                         f"same images at the same size")
    if len(set(ids)) != len(ids):
        raise ValueError(f"image id {next(i for i in ids if list(ids).count(i) > 1)!r} occurs twice in one set; "
                         f"score each image once")
    size = target.shape[-1]
    tp, predicted, actual = (np.count_nonzero(m, axis=(1, 2)) for m in (prediction & target, prediction, target))
    fp, fn = predicted - tp, actual - tp
    tn = size**2 - tp - fp - fn
    records = pd.DataFrame({
        **labels, "id": list(ids), "size": size, "tp": tp, "fp": fp, "fn": fn, "tn": tn,
        "iou": overlap(tp, fp, fn, "iou"), "dice": overlap(tp, fp, fn, "dice"),
    })
    if boundary:
        edges = [(np.argwhere(p), np.argwhere(t))
                 for p, t in zip(_boundary(prediction), _boundary(target), strict=True)]
        records[["nsd", "hd95"]] = _boundary_columns(edges, [(size, size)] * len(edges), size)
        if native_sizes is not None:
            records[["height", "width"]] = np.array(native_sizes).reshape(-1, 2)
            same = all(native == (size, size) for native in native_sizes)
            records[["nsd_native", "hd95_native"]] = (records[["nsd", "hd95"]].to_numpy() if same else
                                                      _boundary_columns(edges, native_sizes, size))
    records["lesion_fraction"] = actual / size**2
    records["empty_prediction"] = predicted == 0
    records["empty_mask"] = actual == 0
    return records


def contrast(images: ImageSet) -> np.ndarray:
    """How far lesion and skin of each image are apart: the difference of their mean colours (Euclidean, each channel in
    [0, 1]) over the pixels' own spread, (N,). NaN where the reference mask is empty or full."""
    parts = []
    for pixels, masks in zip(images.images.split(64), images.masks.split(64), strict=True):
        x, lesion = pixels.float().flatten(2) / 255, masks.flatten(1).bool()  # (n, 3, S²), (n, S²)
        means = []
        for region in (lesion, ~lesion):
            weight = region[:, None].float()
            means.append((x * weight).sum(-1) / weight.sum(-1))
        within = torch.where(lesion[:, None], x - means[0][..., None], x - means[1][..., None])
        spread = within.square().mean(-1).sum(1).sqrt()
        parts.append((means[0] - means[1]).norm(dim=1) / spread)
    return torch.cat(parts).numpy()


def overlap(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, measure: str) -> np.ndarray:
    """IoU tp/(tp+fp+fn) or Dice 2tp/(2tp+fp+fn) of counts of any shape, 1 where there is nothing to find or miss."""
    hits = {"iou": 1, "dice": 2}[measure] * np.asarray(tp, dtype=float)
    total = hits + fp + fn
    return np.divide(hits, total, out=np.ones_like(hits), where=total > 0)


def _boundary_columns(edges: list[tuple[np.ndarray, np.ndarray]], sizes: Sequence[tuple[int, int]],
                      size: int) -> np.ndarray:
    """(N, 2) of `boundary_scores`, with masks of side `size` stretched to `sizes`."""
    scores = [boundary_scores(prediction, target, native, (native[0] / size, native[1] / size))
              for (prediction, target), native in zip(edges, sizes, strict=True)]
    return np.array(scores, dtype=float).reshape(-1, 2)


def boundary_scores(prediction: np.ndarray, target: np.ndarray, size: tuple[int, int],
                    spacing: tuple[float, float] = (1.0, 1.0)) -> tuple[float, float]:
    """Normalised surface Dice and 95 % Hausdorff distance of two boundaries.

    Distances run between the centres of boundary pixels, so both are what MONAI's `compute_surface_dice` and
    `compute_hausdorff_distance(percentile=95)` give. NSD: Nikolov et al. 2021, doi 10.2196/26151. HD95 is the larger of
    the two directed 95th percentiles.

    Args:
        prediction: (P, 2) pixel positions (row, column) on the predicted boundary.
        target: (Q, 2) pixel positions on the reference boundary.
        size: height and width of the image, in the unit of the distances.
        spacing: that unit's size of a row and of a column.
    """
    diagonal, prediction, target = math.hypot(*size), prediction * spacing, target * spacing
    if len(prediction) == 0 or len(target) == 0:
        return (1.0, 0.0) if len(prediction) == len(target) else (0.0, diagonal)
    to_target, _ = KDTree(target).query(prediction)
    to_prediction, _ = KDTree(prediction).query(target)
    near = (to_target <= NSD_TOLERANCE * diagonal).sum() + (to_prediction <= NSD_TOLERANCE * diagonal).sum()
    hd95 = max(np.percentile(to_target, 95), np.percentile(to_prediction, 95))
    return near / (len(prediction) + len(target)), float(hd95)


def _boundary(masks: np.ndarray) -> np.ndarray:
    """Mask pixels with a 4-neighbour outside the mask; what lies beyond the image counts as outside. (N, S, S) bool."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    inside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return masks & ~inside


def _mask(values: torch.Tensor | np.ndarray, name: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"{name} must have shape (N, S, S), not {array.shape}")
    mask = array.astype(bool)
    if array.dtype != bool and not np.array_equal(mask, array):
        raise ValueError(f"{name} must hold 0 (skin) and 1 (lesion) only; threshold probabilities and divide 0/255 "
                         f"masks first")
    return mask
