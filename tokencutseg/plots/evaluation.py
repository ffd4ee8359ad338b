"""The figures of notebook 04: scores image by image, by test set and reduction, and by lesion size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.statistics import IOU_THRESHOLD, summary_table
from tokencutseg.plots.style import (
    GREY,
    NARROW,
    REDUCTIONS,
    WIDTH,
    canvas,
    figure_legend,
    legend_below,
    method_colours,
    method_markers,
    picture,
    typeset,
)

SPREAD = 0.16
"""Distance between the reductions of one row, as a share of the distance between rows."""


def per_image_scores(records: pd.DataFrame) -> Figure:
    """Share of images whose lesion IoU is at most x, by method, one panel per (train, test) pair.

    `records` has one row per image with columns train, test, method, iou. The shading is the 95% band of the whole
    curve (Dvoretzky, Kiefer, Wolfowitz; Massart 1990), wide where images are few; our method's stands for all.
    """
    colours = method_colours(records["method"])
    pairs = list(records.groupby(["train", "test"], sort=False))
    (train, test), rows = pairs[0]
    ours = rows.loc[rows["method"] == "tokencutseg", "iou"]
    columns = min(3, len(pairs))
    width = NARROW if columns == 1 else WIDTH
    figure, axes = canvas(
        math.ceil(len(pairs) / columns),
        columns,
        2.7,
        width,
        sharey=True,
        title=(
            f"{train} → {test}: {(ours < IOU_THRESHOLD).mean():.0%} of the images score below {IOU_THRESHOLD}, the "
            f"threshold of ISIC 2018"
        ),
    )
    for axis in axes.flat[len(pairs) :]:
        axis.remove()
    for axis, ((train, test), rows) in zip(axes.flat, pairs, strict=False):
        for method, part in rows.groupby("method", sort=False):
            values = np.sort(part["iou"].to_numpy())
            share = np.arange(1, len(values) + 1) / len(values)
            x, y = np.concatenate([[0], values, [1]]), np.concatenate([[0], share, [1]])
            own = method == "tokencutseg"
            if own:
                band = math.sqrt(math.log(2 / 0.05) / (2 * len(values)))
                axis.fill_between(
                    x,
                    (y - band).clip(0),
                    (y + band).clip(max=1),
                    step="post",
                    alpha=0.2,
                    color=colours[method],
                    linewidth=0,
                )
            axis.step(
                x,
                y,
                where="post",
                color=colours[method],
                linewidth=2 if own else 1.2,
                zorder=3 if own else 2,
                label=f"{method} {values.mean():.3f}",
            )
        axis.axvline(IOU_THRESHOLD, color="black", linestyle=":", linewidth=1)
        axis.set(xlabel="lesion IoU of an image", xlim=(0, 1), ylim=(0, 1), title=f"{train} → {test}, n = {len(part)}")
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    for row in axes:
        legend_below([axis for axis in row if axis.lines], title="method and its mean")
    for axis in axes[:, 0]:
        axis.set_ylabel("share of images at or below")
    return figure


def cross_dataset(table: pd.DataFrame) -> Figure:
    """IoU and Dice of every (train, test) pair under every reduction, with 95% intervals.

    `table` is the table cross_dataset. A cross marks the published number, where there is one.
    """
    pairs = list(dict.fromkeys(zip(table["train"], table["test"], strict=True)))
    reductions = [name for name in REDUCTIONS if name in set(table["reduction"])]
    figure, axes = canvas(1, 2, height=0.9 + 0.75 * len(pairs), sharey=True, title=_cost_of_another_set(table))
    for axis, (measure, name) in zip(axes[0], (("iou", "IoU"), ("dice", "Dice")), strict=True):
        for i, reduction in enumerate(reductions):
            colour, marker = REDUCTIONS[reduction]
            part = table[(table["reduction"] == reduction) & (table["measure"] == measure)]
            y = [
                pairs.index(pair) + SPREAD * (i - (len(reductions) - 1) / 2)
                for pair in zip(part["train"], part["test"], strict=True)
            ]
            axis.hlines(y, part["low"], part["high"], color=colour, linewidth=2)
            axis.plot(part["mean"], y, marker, color=colour, label=reduction)
            known = part["published"].notna().to_numpy()
            axis.plot(part["published"][known], np.array(y)[known], "x", color="black", markersize=6)
        for border in range(1, len(pairs)):
            axis.axhline(border - 0.5, color=GREY, linewidth=0.5)
        axis.grid(False, axis="y")
        axis.set(xlabel=f"{name}, 95% interval")
        axis.set_yticks(range(len(pairs)), [f"{train} → {test}" for train, test in pairs])
        axis.set_ylim(len(pairs) - 0.5, -0.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    if table["published"].notna().any():
        handles += axes[0, 0].plot([], [], "x", color="black")
        labels.append("published")
    figure_legend(figure, handles, labels)
    return figure


def _cost_of_another_set(table: pd.DataFrame) -> str:
    away = table[(table["train"] != table["test"]) & (table["reduction"] == "per_image") & (table["measure"] == "iou")]
    if away.empty or away["change"].isna().all():
        return "The same predictions under every reduction of the score"
    row = away.iloc[0]
    return typeset(f"Tested on {row['test']} instead of {row['train']}, the lesion IoU changes by {row['change']:+.3f}")


def score_by_lesion_size(records: pd.DataFrame, bins: int = 5, draws: int = 2000, seed: int = 0) -> Figure:
    """Lesion IoU against the lesion's share of the image: the mean of each bin, and for our method every image a dot
    and the bins' band.

    `records` has one row per image with columns method, iou, lesion_fraction; see `size_bins` for the bins.
    """
    table = size_bins(records, bins, draws, seed)
    ours = table[table["method"] == "tokencutseg"]
    figure, axes = canvas(
        1,
        1,
        height=3.3,
        title=(
            f"Mean lesion IoU {ours['mean'].iloc[0]:.2f} on the smallest and {ours['mean'].iloc[-1]:.2f} on the largest of "
            f"{len(ours)} groups of lesions"
        ),
    )
    axis = axes[0, 0]
    colours, markers = method_colours(table["method"]), method_markers(table["method"])
    for method, part in table.groupby("method", sort=False):
        own, colour = method == "tokencutseg", colours[method]
        if own:
            dots = records[records["method"] == method]
            axis.plot(dots["lesion_fraction"], dots["iou"], ".", color=colour, markersize=3, alpha=0.3)
            axis.fill_between(part["lesion_fraction"], part["low"], part["high"], color=colour, alpha=0.2, linewidth=0)
        else:
            axis.vlines(part["lesion_fraction"], part["low"], part["high"], color=colour, linewidth=1)
        axis.plot(
            part["lesion_fraction"],
            part["mean"],
            marker=markers[method],
            color=colour,
            linewidth=2 if own else 1.2,
            zorder=3 if own else 2.5,
            label=method,
        )
    axis.set(
        xscale="log",
        xlabel="lesion's share of the image (log scale)",
        ylim=(0, 1.01),
        ylabel="lesion IoU, 95% interval of the mean",
    )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axis.xaxis.set_minor_formatter(NullFormatter())
    legend_below(axis)
    return figure


def score_by_group(table: pd.DataFrame) -> Figure:
    """Lesion IoU of every group of images, one panel per grouping; `table` is the table score_by_group."""
    groupings = list(dict.fromkeys(table["grouping"]))
    rows = table[
        (table["train"] == table["train"].iloc[0])
        & ((table["grouping"] == "site") | (table["test"] == table["test"].iloc[0]))
    ]
    ours = rows[rows["method"] == "tokencutseg"]
    worst = ours.loc[ours["mean"].idxmin()]
    colours, markers = method_colours(rows["method"]), method_markers(rows["method"])
    figure, axes = canvas(
        1,
        len(groupings),
        height=2.8,
        sharey=True,
        title=(
            f"Trained on {worst['train']}, tokencutseg scores lowest where the {worst['grouping']} is {worst['group']}: "
            f"lesion IoU {worst['mean']:.2f}"
        ),
    )
    for axis, grouping in zip(axes[0], groupings, strict=True):
        part = rows[rows["grouping"] == grouping]
        names = list(dict.fromkeys(part["group"]))
        methods = list(dict.fromkeys(part["method"]))
        for k, method in enumerate(methods):
            own = part[part["method"] == method].set_index("group").loc[names]
            x = np.arange(len(names)) + min(0.16, 0.7 / len(methods)) * (k - (len(methods) - 1) / 2)
            axis.vlines(x, own["low"], own["high"], color=colours[method], linewidth=2)
            axis.plot(x, own["mean"], markers[method], color=colours[method], label=method)
        axis.set_xticks(
            range(len(names)),
            [f"{name}\nn = {n}" for name, n in zip(names, part.drop_duplicates("group")["n"], strict=True)],
        )
        axis.set(xlabel=grouping, xlim=(-0.5, len(names) - 0.5))
    axes[0, 0].set(ylabel="lesion IoU, 95% interval", ylim=(0, 1.01))
    figure_legend(figure, *axes[0, 0].get_legend_handles_labels())
    return figure


def contact_sheet(pairs: pd.DataFrame, sets: Mapping[tuple[str, str], ImageSet], most: int = 60) -> Figure:
    """Pairs of images that the audit found, side by side, the least alike first (those are the ones to doubt).

    `pairs` is what `overlaps` gives for `sets`; pairs that share an id are left out, at most `most` are shown.
    """
    shown = pairs[pairs["kind"] != "same id"].sort_values("distance", ascending=False, kind="stable").head(most)
    places = {key: {name: k for k, name in enumerate(images.ids)} for key, images in sets.items()}
    columns = 3
    figure, axes = canvas(
        max(1, math.ceil(len(shown) / columns)),
        columns,
        height=1.75,
        title=(
            f"{len(shown)} of {(pairs['kind'] != 'same id').sum()} pairs under different ids, the least alike first"
        ),
    )
    for axis, row in zip(axes.flat, shown.itertuples(), strict=False):
        both = [
            sets[key].images[places[key][name]]
            for key, name in (((row.dataset_1, row.split_1), row.id_1), ((row.dataset_2, row.split_2), row.id_2))
        ]
        picture(
            axis,
            torch.cat(both, 2),
            f"{row.dataset_1}/{row.split_1} {row.id_1}\n{row.dataset_2}/{row.split_2} "
            f"{row.id_2}\n{row.distance:.0f} bits apart",
        )
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    return figure


def size_bins(records: pd.DataFrame, bins: int = 5, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """The mean lesion IoU by size of the lesion, in `bins` groups of nearly equal numbers of images per method.

    Columns method, lesion_fraction (the group's median), n, mean, low, high (95% bootstrap interval), small first.
    """
    rank = records.groupby("method")["lesion_fraction"].rank(method="first", pct=True)
    grouped = records.assign(bin=np.ceil(rank * bins).astype(int)).sort_values("bin", kind="stable")
    table = summary_table(grouped, ["method", "bin"], ["per_image"], ["iou"], draws, seed)
    size = grouped.groupby(["method", "bin"])["lesion_fraction"].median().rename("lesion_fraction").reset_index()
    return table.merge(size, on=["method", "bin"])[["method", "lesion_fraction", "n", "mean", "low", "high"]]
