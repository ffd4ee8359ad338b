"""From per-image records to one number with its interval, under each reduction that the literature calls "mIoU".

Every reduction is a function of *sums* over images (of pixel counts, or of per-image scores). That makes the bootstrap
one matrix product: how often each image is drawn, (draws, images), times the columns to be summed, (images, columns).

Images of one patient or lesion are not independent. Where the records say so in a column `cluster`, whole clusters are
drawn; where an image occurs several times (one `id` in several trainings), its rows are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import sem, t, wilcoxon

from tokencutseg.evaluation.per_image import COUNTS, overlap

REDUCTIONS = {
    "micro_two_class": "mean of lesion and background, each over all pixels of the set (printed by the released code)",
    "micro_lesion": "lesion only, over all pixels of the set",
    "per_image": "lesion only, per image, then the mean (the ISIC challenges' own)",
    "per_image_thr65": "as per_image, but an image whose IoU is below 0.65 counts 0 (ISIC 2018 challenge)",
}
MEASURES = {
    "iou": tuple(REDUCTIONS),
    "dice": tuple(REDUCTIONS),
    "nsd": ("per_image",),
    "hd95": ("per_image",),
    "iou_native": ("per_image", "per_image_thr65"),
    "dice_native": ("per_image", "per_image_thr65"),
    "nsd_native": ("per_image",),
    "hd95_native": ("per_image",),
}
"""The measures, each with the reductions that it exists under: a boundary cannot be pooled over images, nor can pixels
of images of different sizes. `_native`: at the size of each image's file, as the ISIC challenges score."""
LESS_IS_BETTER = ("hd95", "hd95_native")
"""The measures that are distances."""

IOU_THRESHOLD = 0.65
"""Below it the ISIC 2018 challenge counts a segmentation as failed (Codella et al. 2019, arXiv 1902.03368)."""
WEIGHTS_AT_ONCE = 4_000_000
"""Largest number of entries (draws × images) of a weight matrix held at once, 32 MB."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Sums over images (..., C) → the score (...)."""


@dataclass(frozen=True)
class Summary:
    """A mean over `n` images with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int


UNSCORED = Summary(math.nan, math.nan, math.nan, 0)
"""Of no images."""


@dataclass(frozen=True)
class PairedDifference:
    """Score of a minus score of b over the same `n` images, its 95 % interval and the Wilcoxon signed-rank p-value."""

    difference: float
    low: float
    high: float
    p: float
    n: int

    def columns(self) -> dict[str, float]:
        """As the columns of a table."""
        return {"diff": self.difference, "diff_low": self.low, "diff_high": self.high, "p": self.p}


def summarise(records: pd.DataFrame, reduction: str, measure: str, draws: int = 10_000, seed: int = 0) -> Summary:
    """The mean of a measure (of `MEASURES`) over `records` (rows of `per_image.score`) under a reduction (of
    `REDUCTIONS`), with a 95 % percentile bootstrap interval over images.

    The same records, draws (resamples) and seed give the same interval. Raises ValueError for an unknown or impossible
    pair of reduction and measure, or no records.
    """
    return _summaries(records, [(reduction, measure)], draws, seed)[0]


def summary_table(
    records: pd.DataFrame,
    by: Sequence[str],
    reductions: Sequence[str] = tuple(REDUCTIONS),
    measures: Sequence[str] = tuple(MEASURES),
    draws: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """`summarise` for every group of rows that agree in the columns `by`, and every reduction and measure that exist
    together and were scored.

    Columns `by`, then reduction, measure, n, mean, low, high; groups in the order in which they occur. Raises
    ValueError as `summarise`.
    """
    _check_names(reductions, measures)
    by = list(by)
    if missing := [column for column in by if column not in records]:
        raise ValueError(f"the records have no column {missing[0]!r}; they have: {', '.join(records.columns)}")
    there = [measure for measure in measures if measure in records]
    pairs = [(reduction, measure) for reduction in reductions for measure in there if reduction in MEASURES[measure]]
    parts = records.groupby(by, sort=False, dropna=False) if by else [((), records)]
    rows = [
        (*key, *pair, summary.n, summary.mean, summary.low, summary.high)
        for key, part in parts
        for pair, summary in zip(pairs, _summaries(part, pairs, draws, seed), strict=True)
    ]
    return pd.DataFrame(rows, columns=[*by, "reduction", "measure", "n", "mean", "low", "high"])


def size_bins(records: pd.DataFrame, bins: int = 5, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The mean lesion IoU by size of the lesion, in `bins` groups of nearly equal numbers of images per method.

    Columns method, lesion_fraction (the group's median), n, mean, low, high (95 % bootstrap interval), small first.
    Images without lesion are left out: they have no size.
    """
    records = records[records["lesion_fraction"] > 0]
    by = [name for name in ("method", "seed") if name in records]
    rank = records.groupby(by)["lesion_fraction"].rank(method="first", pct=True)
    binned = records.assign(bin=np.ceil(rank * bins)).sort_values("bin", kind="stable")
    binned["lesion_fraction"] = binned.groupby(["method", "bin"])["lesion_fraction"].transform("median")
    table = summary_table(binned, ["method", "lesion_fraction", "bin"], ["per_image"], ["iou"], draws, seed)
    return table[["method", "lesion_fraction", "n", "mean", "low", "high"]]


def paired_difference(
    a: pd.DataFrame, b: pd.DataFrame, reduction: str, measure: str, draws: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Compare two methods on the same images: `paired_differences` for one reduction and measure."""
    return paired_differences(a, b, [(reduction, measure)], draws, seed)[0]


def paired_differences(
    a: pd.DataFrame, b: pd.DataFrame, pairs: Sequence[tuple[str, str]], draws: int = 10_000, seed: int = 0
) -> list[PairedDifference]:
    """Compare the records of two methods on the same images, matched by `id`, with the same draws, for each (reduction,
    measure) of `pairs`.

    A column `seed` tells several trainings of a method apart; those are compared whose seed both methods have, and an
    only one with every training of the other method. Each side of the interval then adds in quadrature, as independent
    errors, the bootstrap over images and Student's t of a mean over seeds, which are too few to be resampled. p is
    Wilcoxon's signed-rank test on the images' own scores (their means over the seeds and over what is drawn together),
    1 where none differs or the ranks contradict the mean, and NaN for a micro reduction, which has no score per image.
    Raises ValueError if no seed is common, if the ids of two trainings differ or repeat, or as `summarise`.
    """
    one, two = (dict(iter(records.groupby("seed"))) if "seed" in records else {0: records} for records in (a, b))
    one = one if len(one) > 1 else dict.fromkeys(two, *one.values())
    two = two if len(two) > 1 else dict.fromkeys(one, *two.values())
    seeds = [name for name in one if name in two]
    if not seeds:
        raise ValueError(f"trainings with the seeds {[*one]} and {[*two]} cannot be paired")
    trainings = _matched([side[name] for side in (one, two) for name in seeds])

    def difference(sums: np.ndarray, pair: tuple[str, str]) -> np.ndarray:
        own, other = np.split(sums, 2, axis=-1)
        return _score(own, *pair) - _score(other, *pair)

    sides = [np.stack([_columns(records, *pair) for records in trainings]) for pair in pairs]
    sides = [columns.reshape(2, len(seeds), *columns.shape[1:]) for columns in sides]  # (2, seeds, images, C)
    jobs = [(np.hstack(both.sum(1)), partial(difference, pair=pair)) for both, pair in zip(sides, pairs, strict=True)]
    units = _units(trainings[0])
    found, results = _bootstrap(jobs, draws, seed, units), []
    for pair, both, (mean, low, high) in zip(pairs, sides, found, strict=True):
        if len(seeds) > 1:
            apart = sem(difference(np.hstack(both.sum(2)), pair)) * t.ppf(0.975, len(seeds) - 1)
            low, high = mean - math.hypot(mean - low, apart), mean + math.hypot(high - mean, apart)
        changes = pd.Series(np.subtract(*both[..., 0].mean(1)))
        if units is not None:
            changes = changes.groupby(units, dropna=False).mean()
        p = _signed_rank(changes.to_numpy()) if pair[0].startswith("per_image") else math.nan
        results.append(PairedDifference(mean, low, high, p, len(trainings[0])))
    return results


def _matched(parts: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """Records of the same images, each with the rows in the order of the first, indexed by `id`."""
    by_id = [records.set_index("id") for records in parts]
    first = by_id[0].index
    for records in by_id:
        if not records.index.is_unique:
            raise ValueError("an image id occurs twice; compare one method with one other, a row per image and seed")
        if len(apart := first.symmetric_difference(records.index)):
            raise ValueError(f"scored on different images: {len(apart)} ids are on one side only, such as {apart[0]!r}")
    return [records.loc[first] for records in by_id]


def mean_interval(
    values: np.ndarray, draws: int = 10_000, seed: int = 0, units: ArrayLike | None = None
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of `values` (N,), one per image; see `interval`."""
    return interval(np.column_stack([values, np.ones(len(values))]), _ratio, draws, seed, units)


def interval(
    columns: np.ndarray, statistic: Statistic, draws: int = 10_000, seed: int = 0, units: ArrayLike | None = None
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of a function of the sums of `columns` (N, C), one row per image; those of
    one label in `units` (N,) are drawn together."""
    return _bootstrap([(columns, statistic)], draws, seed, units)[0][1:]


def holm(pvalues: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjustment of a family of p-values, in the order given (Holm 1979); NaN stays and counts for
    nothing. Raises ValueError for a value outside [0, 1]."""
    adjusted = np.array(pvalues, dtype=float)
    known = ~np.isnan(adjusted)
    p = adjusted[known]
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], not {p.tolist()}")
    order = np.argsort(p)
    adjusted[np.flatnonzero(known)[order]] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def largest_dice(iou: float | np.ndarray) -> float | np.ndarray:
    """The largest mean Dice that a mean IoU of J (in [0, 1]) allows, 2J/(1+J): Dice is that of each image, a concave
    function, so that by Jensen's inequality a mean over the same units lies below."""
    return 2 * iou / (1 + iou)


def _summaries(records: pd.DataFrame, pairs: Sequence[tuple[str, str]], draws: int, seed: int) -> list[Summary]:
    """One for each (reduction, measure), all from the same draws."""
    if len(records) == 0:
        raise ValueError("there are no records to summarise")
    jobs = [(_columns(records, *pair), partial(_score, reduction=pair[0], measure=pair[1])) for pair in pairs]
    images = records["id"].nunique() if "id" in records else len(records)
    return [Summary(*found, images) for found in _bootstrap(jobs, draws, seed, _units(records))]


def _bootstrap(
    jobs: Sequence[tuple[np.ndarray, Statistic]], draws: int, seed: int, units: ArrayLike | None
) -> list[tuple[float, float, float]]:
    """Estimate and 95 % percentile interval of each job, columns (N, C) and what their sums amount to, all from the
    same draws of units, which stand in the same order for the same labels."""
    if not jobs:
        return []
    columns = np.hstack([x for x, _ in jobs])  # one product for all jobs is much faster than one for each
    if units is not None:
        columns = pd.DataFrame(columns).groupby(np.asarray(units), dropna=False).sum().to_numpy()
    sums = np.concatenate([columns.sum(axis=0)[None], *(w @ columns for w in _weights(len(columns), draws, seed))])
    results, ends = [], np.cumsum([x.shape[1] for x, _ in jobs])[:-1]
    for part, (_, f) in zip(np.split(sums, ends, axis=1), jobs, strict=True):
        estimate, *resampled = f(part)
        low, high = np.percentile(resampled, [2.5, 97.5])
        results.append((float(estimate), float(low), float(high)))
    return results


def _weights(units: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each unit is taken in each resample: (draws, units) float64, in chunks of rows, each row summing to
    `units`. The chunks are those of one stream of random numbers: their size changes nothing."""
    generator = np.random.default_rng(seed)
    step = max(1, WEIGHTS_AT_ONCE // units)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        taken = generator.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(taken.ravel(), minlength=rows * units).reshape(rows, units).astype(float)


def _units(records: pd.DataFrame) -> np.ndarray | None:
    """What is drawn together, one label per row: the `cluster` where it is known, else the `id` where one repeats."""
    if "cluster" in records and records["cluster"].notna().any():
        return records["cluster"].to_numpy()
    return records["id"].to_numpy() if "id" in records and records["id"].duplicated().any() else None


def _signed_rank(changes: np.ndarray) -> float:
    """Wilcoxon's two-sided p for changes (N,), one per image or unit, 1 where most ranks point against the mean change,
    which they then do not support: exact for few without ties, else by the normal approximation (for few with ties
    SciPy would permute signs, for seconds)."""
    sizes = np.abs(changes)
    if not sizes.any():
        return 1.0
    exact = len(sizes) <= 50 and sizes.all() and len(np.unique(sizes)) == len(sizes)
    side = "greater" if changes.mean() > 0 else "less"
    return min(1.0, 2 * float(wilcoxon(changes, alternative=side, method="exact" if exact else "asymptotic").pvalue))


def _columns(records: pd.DataFrame, reduction: str, measure: str) -> np.ndarray:
    """What is summed over images: (images, 4) tp, fp, fn, tn for a micro reduction; (images, 2) score and 1 else.

    Raises ValueError for a pair that is unknown or impossible, or was not scored.
    """
    _check_names([reduction], [measure])
    if reduction not in MEASURES[measure]:
        reason = "a boundary, or a size of its own, belongs to one image"
        raise ValueError(f"{measure!r} has no reduction {reduction!r}, only {', '.join(MEASURES[measure])}: {reason}")
    if reduction.startswith("micro"):
        return records[list(COUNTS)].to_numpy(dtype=float)
    if measure not in records:
        raise ValueError(f"the records hold no {measure!r}: they were scored without it")
    scores = records[measure].to_numpy(dtype=float)
    if reduction == "per_image_thr65":
        iou = records["iou_native" if measure.endswith("_native") else "iou"]
        scores = np.where(iou < IOU_THRESHOLD, 0.0, scores)
    return np.column_stack([scores, np.ones(len(records))])


def _score(sums: np.ndarray, reduction: str, measure: str) -> np.ndarray:
    """The score that sums (..., columns) of `_columns` amount to: (...)."""
    if reduction.startswith("per_image"):
        return _ratio(sums)
    tp, fp, fn, tn = np.moveaxis(sums, -1, 0)
    lesion = overlap(tp, fp, fn, measure)
    if reduction == "micro_lesion":
        return lesion
    background = overlap(tn, fn, fp, measure)
    # like torchmetrics' macro average: a class that neither prediction nor target holds is left out of the mean
    has_lesion, has_background = tp + fp + fn > 0, tn + fp + fn > 0
    return (lesion * has_lesion + background * has_background) / (1.0 * has_lesion + has_background)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _check_names(reductions: Sequence[str], measures: Sequence[str]) -> None:
    for name, given, known in (("reduction", reductions, REDUCTIONS), ("measure", measures, MEASURES)):
        if unknown := [one for one in given if one not in known]:
            raise ValueError(f"unknown {name} {unknown[0]!r}. Known: {', '.join(known)}")
