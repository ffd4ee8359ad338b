"""Figures of notebook 04: scores image by image, by test set and reduction, by lesion size and by group.

The tables are those of the same names in `experiments.tables`.
"""

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.statistics import IOU_THRESHOLD
from tokencutseg.plots import style as st
from tokencutseg.plots.charts import SCORE, dot_figure, line_band


def pair_names(table: pd.DataFrame) -> pd.Series:
    """train → test of each row, with a star where something has to be said of these images (column note)."""
    return table["train"] + " → " + table["test"] + table["note"].fillna("").map(lambda note: "*" * bool(note))


def with_notes(title: str, table: pd.DataFrame) -> str:
    """A title, and below it what the stars stand for, once each: notes are facts with semicolons between them."""
    facts = dict.fromkeys("; ".join(filter(None, table["note"].dropna().unique())).split("; "))
    return "\n".join([title, *(f"* {fact}" for fact in facts if fact)])


def per_image_scores(records: pd.DataFrame) -> Figure:
    """Share of images whose lesion IoU is at most x, by method, one panel per (train, test) pair.

    records: one row per image and training, with columns id, train, test, note, method, iou.
    """
    shown = st.looks(records["method"])
    pairs = list(records.groupby(pair_names(records), sort=False))
    width = st.NARROW if len(pairs) == 1 else st.WIDTH
    title = with_notes("Cumulative distribution of lesion IoU over test images", records)
    figure, axes = st.make_panels(len(pairs), min(3, len(pairs)), 2.6, width, title, sharey=True)
    palette = {name: look.colour for name, look in shown.items()}
    for axis, (pair, rows) in zip(axes, pairs, strict=True):
        sns.ecdfplot(rows, x="iou", hue="method", hue_order=shown, palette=palette, legend=False, ax=axis)
        axis.axvline(IOU_THRESHOLD, color="black", linestyle=":", linewidth=1)
        axis.set(xlabel=f"lesion IoU (dotted: {IOU_THRESHOLD})", ylabel="share of images at or below", xlim=(0, 1))
        axis.set_title(f"{pair}, n = {rows['id'].nunique()}")
    st.legend_of(figure, (look._replace(marker="") for look in shown.values()), "-")
    return figure


def cross_dataset(table: pd.DataFrame) -> Figure:
    """IoU and Dice of every (train, test) pair under every reduction; a cross is the published number."""
    table = table.assign(pair=pair_names(table))
    shown = {name: look for name, look in st.REDUCTIONS.items() if name in set(table["reduction"])}
    if table["published"].notna().any():
        shown["published"] = st.Look("published", "black", "x")
    names = (("iou", "IoU"), ("dice", "Dice"))
    panels = {f"{name}, 95% interval": (table[table["measure"] == measure], SCORE) for measure, name in names}
    title = with_notes("Score of each training → test pair under each reduction", table)
    return dot_figure(panels, "pair", title, shown, series="reduction", crosses="published")


def score_by_lesion_size(table: pd.DataFrame, records: pd.DataFrame) -> Figure:
    """Mean lesion IoU over the lesion's share of the image, by method.

    table: of `size_bins`. records: of one method, each image a dot: columns method, iou, lesion_fraction. Images
    without lesion have no place on the axis.
    """
    shown, empty = st.looks(table["method"]), int((records["lesion_fraction"] == 0).sum())
    if empty == len(records):
        return st.sentence("None of these images has a lesion whose size could be asked for.")
    title = "Lesion IoU over lesion size: means of bins of equally many images"
    title += f" ({empty} of {len(records)} have no lesion: not shown)" * (empty > 0)
    figure, ((axis,),) = st.make_figure(height=3.3, title=title)
    colour = shown[records["method"].iloc[0]].colour
    axis.plot(records["lesion_fraction"], records["iou"], ".", color=colour, ms=3, alpha=0.35)
    line_band(axis, table, "lesion_fraction", SCORE, "method", shown)
    axis.set(xscale="log", xlabel="lesion's share of the image (log scale)", ylim=(0, 1.01))
    axis.set_ylabel("lesion IoU, 95% interval of the mean")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axis.xaxis.set_minor_formatter(NullFormatter())
    st.legend_of(figure, shown.values(), "-")
    return figure


def score_by_group(table: pd.DataFrame) -> Figure:
    """Lesion IoU of every group of images, one panel per grouping, for the first training set and its own test set."""
    first = table.iloc[0]
    own = (table["grouping"] == "site") | (table["test"] == first["test"])
    table = table[(table["train"] == first["train"]) & own]
    groups = table.assign(rows=table["group"] + "\nn = " + table["n"].astype(str)).groupby("grouping", sort=False)
    panels = {f"by {grouping}:\nlesion IoU, 95% interval": (part, SCORE) for grouping, part in groups}
    title = with_notes(f"Trained on {first['train']}: lesion IoU by group of test images", table)
    return dot_figure(panels, "rows", title, st.looks(table["method"]), series="method")


def contact_sheet(pairs: pd.DataFrame, sets: Mapping[tuple[str, str], ImageSet]) -> Figure:
    """Pairs of images that the audit found, side by side, the least alike first (those are the ones to doubt).

    pairs: what `overlaps` gives for `sets`; pairs that share an id are left out, 60 are shown at most.
    """
    pairs = pairs[pairs["kind"] != "same id"].sort_values("distance", ascending=False, kind="stable")
    shown = pairs.head(60)
    title = f"{len(shown)} of {len(pairs)} pairs under different ids, the least alike first"
    figure, axes = st.make_panels(len(shown), 3, 1.75, title=title)
    for axis, row in zip(axes, shown.itertuples(), strict=True):
        sides = ((row.dataset_1, row.split_1, row.id_1), (row.dataset_2, row.split_2, row.id_2))
        images = [(sets[dataset, split], name) for dataset, split, name in sides]
        both = torch.cat([images.images[images.ids.index(name)] for images, name in images], 2)
        names = "\n".join(f"{dataset}/{split} {name}" for dataset, split, name in sides)
        st.show_image(axis, both, f"{names}\n{row.distance:.0f} bits apart")
    return figure
