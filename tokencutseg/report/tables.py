"""Tables as a reader wants them: numbers rounded, an estimate beside its interval, columns and values in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tokencutseg.plots.style import METHODS, REDUCTIONS

COLUMNS = {
    "auc": "area under ROC curve",
    "chance": "by commonest code",
    "diff": "paired difference",
    "dice": "Dice",
    "flops": "operations",
    "fn": "missed",
    "fp": "false pos.",
    "fraction": "share of masks",
    "in_domain": "on own test set",
    "iou": "IoU",
    "iou_without": "IoU without them",
    "labels": "masks",
    "labels_seen": "different masks seen",
    "latency_seconds": "seconds per image",
    "mean_without": "mean without images seen",
    "n": "images",
    "n_without": "images without those seen",
    "p_holm": "p (Holm)",
    "peak_memory_bytes": "bytes of activations",
    "other_seeds": "trainings of the other",
    "psnr": "PSNR (dB)",
    "seeds": "trainings",
    "set_1": "first set",
    "set_2": "second set",
    "ssim": "SSIM",
    "test": "tested on",
    "tn": "true neg.",
    "tp": "true pos.",
    "train": "trained on",
    "unet": "U-Net",
}
"""Columns whose words are not their name; in others an underscore is a space."""
_AGAINST_METHODS = {"diff": "TokenCutSeg − method"}
HEADS = {
    "baselines": _AGAINST_METHODS,
    "codebook_size": {"diff": "difference to the first row"},
    "cross_dataset": {"diff": "difference to own test set (unpaired)"},
    "deviations": {"diff": "difference to the unchanged recipe"},
    "feature_quality": {"diff": "transformer − features", "n": "tokens"},
    "graph_radius": {"diff": "difference to the first row"},
    "label_efficiency": _AGAINST_METHODS,
    "linear_probe": {"n": "tokens"},
    "main_results": _AGAINST_METHODS,
    "masked_prediction": {"n": "masked tokens"},
    "pairwise": {"diff": "method − other"},
    "revised_steps": {"diff": "difference to the best before"},
    "stages": {"diff": "difference to the row above"},
}
"""Columns that mean different things in different tables, by table."""
_MEASURES = {"iou": "IoU", "dice": "Dice", "nsd": "surface Dice", "hd95": "Hausdorff 95 %", "l1": "L1", "psnr": "PSNR"}
_MEASURES |= {"ssim": "SSIM", "lpips": "LPIPS"}
_MEASURES |= {f"{name}_native": f"{_MEASURES[name]}, own size" for name in ("iou", "dice", "nsd", "hd95")}
LABELS = {name: look.label for name, look in METHODS.items()}
VALUES: dict[str, dict[Any, str]] = {
    "method": LABELS,
    "other": LABELS,
    "reduction": {name: look.label for name, look in REDUCTIONS.items()},
    "measure": _MEASURES,
    "stage": {"vqgan": "tokenizer", "masked_gpt": "masked transformer"},
    "chosen_by": {f"validation_{name}_iou": f"IoU {look.label}" for name, look in REDUCTIONS.items()},
}
"""Values in words, by column."""


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`table` as text, narrow enough to read: numbers rounded, and an estimate in one column with its interval
    (`bounds`).

    From here on pandas shows texts whole, which it would cut after 50 characters: a reason is a sentence.
    """
    pd.set_option("display.max_colwidth", None)
    columns, read = list(table), {name: [_text(value) for value in table[name]] for name in table}
    for name in columns:
        if ends := bounds(columns, name):
            (low, high), signed = ends, name.startswith("diff")
            triples = zip(table[name], table[low], table[high], strict=True)
            read[name] = [_text(x) if pd.isna(a) else interval(x, a, b, signed) for x, a, b in triples]
            del read[low], read[high]
    return pd.DataFrame(read, index=table.index)


def bounds(columns: Sequence[str], name: str) -> tuple[str, str] | None:
    """The columns that bound the interval of the column `name`, if there are any: ``x_low`` and ``x_high`` belong to
    ``x``, and ``low`` and ``high`` (or ``low_without`` and ``high_without``) to the column before them."""
    following = [*columns, ""][columns.index(name) + 1]
    low = following if following in ("low", "low_without") else f"{name}_low"
    return (low, low.replace("low", "high")) if low in columns else None


def in_words(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, str]:
    """`readable` for somebody who does not know the columns of the table `name`; and what is the same in all its rows.

    Run ids and empty columns are left out.
    """
    table = table.drop(columns="runs", errors="ignore").dropna(axis="columns", how="all")
    worded = {column: table[column].replace(words) for column, words in VALUES.items() if column in table}
    read = readable(table.assign(**worded))
    for column in {"p", "p_holm"} & set(table):
        read[column] = ["–" if pd.isna(p) else f"{p:.2g}" if p >= 1e-4 else "< 0.0001" for p in table[column]]
    heads = {column: COLUMNS.get(column, column.replace("_", " ")) for column in read}
    heads |= HEADS.get(name, {})
    same = [column for column in read if len(read) > 1 and read[column].nunique() == 1]
    said = ", ".join(f"{heads[column]} {read[column].iloc[0]}" for column in same if read[column].iloc[0] != "–")
    return read.drop(columns=same).rename(columns=heads), said


def interval(value: float, low: float, high: float, signed: bool = False) -> str:
    """A value with its interval, and with so many digits that a bound near zero keeps its sign."""
    digits = 4 if signed and min(abs(low), abs(high)) < 5e-4 else 3
    value_, low_, high_ = (f"{x:{'+' if signed else ''}.{digits}f}".replace("-", "−") for x in (value, low, high))
    return f"{value_} [{low_}, {high_}]"


def _text(value: Any) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")
    return str(value)
