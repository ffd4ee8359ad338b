"""Figures of notebook 05, one per table of ablations.

The tables are those of `experiments.ablations`; scores are lesion IoU, differences are paired.
"""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tokencutseg.plots import style as st
from tokencutseg.plots.charts import DIFFERENCE, SCORE, dot_figure, dot_interval, line_band

IOU = "lesion IoU, 95% interval"
HEADS = {"linear probe": st.Look("linear probe", st.SKY, "s"), "graph": st.Look("graph head", st.BLUE, "o")}


def codebook_size(table: pd.DataFrame) -> Figure:
    """Usage, perplexity, reconstruction and segmentation over the codebook size K."""
    table = table.assign(rows="K = " + table["codebook_size"].astype(str), usage=100 * table["usage"])
    panels = {
        "codes used\n(%)": ("usage",),
        "perplexity\n(codes)": ("perplexity",),
        "PSNR (dB),\n95% interval": ("psnr", "psnr_low", "psnr_high"),
        "lesion IoU,\n95% interval": SCORE,
        f"difference to\n{table['rows'].iloc[0]}, paired": DIFFERENCE,
    }
    title = "Tokenization and segmentation of validation images by codebook size K"
    return dot_figure({label: (table, columns) for label, columns in panels.items()}, "rows", title)


def _score_and_difference(table: pd.DataFrame, names: Iterable[str], reference: str, title: str) -> Figure:
    table = table.assign(rows=names)
    panels = {IOU: (table, SCORE), f"paired difference\nto {reference}": (table, DIFFERENCE)}
    return dot_figure(panels, "rows", f"{title}: validation images")


def stages(table: pd.DataFrame) -> Figure:
    """The score of each stage, and its difference to the row above."""
    return _score_and_difference(table, table["stages"], "row above", "Stages added one by one")


def revised_steps(table: pd.DataFrame) -> Figure:
    """The score at each step from `described` to `revised`, and its difference to the best so far (✗: not kept)."""
    names = [row.step + _change(row) + ("" if row.kept else " ✗") for row in table.itertuples()]
    return _score_and_difference(table, names, "best so far", "From the described to the revised method (✗: not kept)")


def graph_radius(table: pd.DataFrame) -> Figure:
    """The score over the radius of the graph, and its difference to the first row."""
    names = [f"radius {row.radius:g}\n({row.neighbours} neighbours)" for row in table.itertuples()]
    return _score_and_difference(table, names, names[0].split("\n")[0], "Radius of the token graph (in tokens)")


def feature_quality(table: pd.DataFrame) -> Figure:
    """Token IoU of two heads on the same frozen features, and the difference of the transformer's output to each."""
    panels = {
        "lesion IoU over tokens, 95% interval": (table, ("iou", "iou_low", "iou_high")),
        "transformer output − features": (table, DIFFERENCE),
    }
    title = "Two heads on the same frozen features: tokens of validation images"
    return dot_figure(panels, "features", title, HEADS, series="head")


def label_efficiency(table: pd.DataFrame) -> Figure:
    """The score over the share of labels, a panel per test set, a line per method; bands are intervals, bars the range
    of the draws. Of one share, the differences to the other methods."""
    shown, tests = st.looks(table["method"]), table["test"].unique()
    draws, shares = (table.groupby(column, sort=False)["seeds"].max() for column in ("method", "fraction"))
    once = [shown[name].label for name in draws.index[draws == 1]] + [
        f"{100 * x:g}%" for x in shares.index[shares == 1]
    ]
    most = table["seeds"].max()
    drawn = ("one draw" if most == 1 else f"{most} draws") + (f" ({', '.join(once)}: one)" if once and most > 1 else "")
    if table["fraction"].nunique() == 1:
        table = table.assign(rows=[shown[name].label for name in table["method"]]).dropna(subset="diff")
        panels = {f"{test}:\nTokenCutSeg − method": (table[table["test"] == test], DIFFERENCE) for test in tests}
        return dot_figure(panels, "rows", f"Lesion IoU on test images with {table['labels'].iloc[0]} masks, {drawn}")
    title = f"Lesion IoU on test images by share of the masks, {drawn}"
    figure, (axes,) = st.make_figure(1, len(tests), 3.1, st.NARROW if len(tests) == 1 else st.WIDTH, title)
    labels = table.drop_duplicates("fraction")
    for axis, test in zip(axes, tests, strict=True):
        part = table[table["test"] == test]
        line_band(axis, part, "fraction", SCORE, "method", shown)
        if most > 1:
            colours = part["method"].map(lambda name: shown[name].colour)
            axis.vlines(part["fraction"], part["seed_low"], part["seed_high"], color=colours, linewidth=3, alpha=0.6)
        axis.set_xscale("log")
        ticks = [f"{100 * row.fraction:g}%, {row.labels}" for row in labels.itertuples()]
        axis.set_xticks(labels["fraction"], ticks, rotation=90)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(f"test {test}")
    for axis in axes if len(axes) < 3 else axes[1:2]:  # it is as wide as two panels of three
        axis.set_xlabel("share of the training masks (log scale), their number")
    axes[0].set(ylabel=IOU + ("\nmean of the draws, bar: their range" if most > 1 else ""))
    st.legend_of(figure, shown.values(), "-")
    return figure


def deviations(table: pd.DataFrame) -> Figure:
    """What changing one option does to the score, one panel per recipe and one row per option.

    Rows are in the order of the first panel's differences, the largest on top.
    """
    first = table.drop_duplicates("option").sort_values("diff", ascending=False, kind="stable")
    names = {row.option: f"{row.option}\n{_values(row, '⇄')}" for row in first.itertuples()}
    seeds = int(table["seeds"].min())
    title = f"One option changed at a time: validation images, {f'{seeds} seeds' if seeds > 1 else 'one seed'}"
    panels = {}
    for recipe, part in table.assign(rows=table["option"].map(names)).groupby("recipe", sort=False):
        part = part.set_index("rows").reindex(names.values()).reset_index()
        change = "corrected" if recipe == "released" else "set back"
        panels[f"{recipe}, one option {change}:\npaired difference in lesion IoU"] = (part, DIFFERENCE)
    return dot_figure(panels, "rows", title)


def _change(row: Any) -> str:
    """The change of an option in a step, with the names of the options that change along with it."""
    along = [part.split(" = ")[0].rpartition(".")[2] for part in str(row.also).split(", ") if "." in part]
    return (f"\n{_values(row, '→')}" if "." in row.step else "") + (f" (+ {', '.join(along)})" if along else "")


def _values(row: Any, between: str) -> str:
    """An option's value in the recipe and the other one."""
    values = (row.setting, row.instead)
    return f" {between} ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)


def efficiency(table: pd.DataFrame) -> Figure:
    """Parameters, operations, time and memory of one prediction, each on its own linear axis from zero."""
    units = {
        "parameters": ("parameters\n(million)", 1e-6),
        "flops": ("operations\n(GFLOP)", 1e-9),
        "latency_seconds": ("time\n(ms)", 1e3),
        "peak_memory_bytes": ("activations\nat peak (MB)", 1e-6),
    }
    labels, colours, _ = zip(*st.looks(table["method"]).values(), strict=True)
    title = "Cost of one prediction on one image"
    figure, (axes,) = st.make_figure(1, 4, 0.7 + 0.28 * len(table), title=title, sharey=True)
    axes[0].invert_yaxis()
    for axis, (column, (name, scale)) in zip(axes, units.items(), strict=True):
        bars = axis.barh(labels, table[column] * scale, color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=st.SMALL)
        axis.set(xlabel=name, xlim=(0, 1.45 * scale * table[column].max()))
        axis.grid(False, axis="y")
        axis.locator_params(axis="x", nbins=4)
    return figure


def baselines(table: pd.DataFrame, measure: str = "iou", test: str = "") -> Figure:
    """Every method under every reduction, and TokenCutSeg's paired difference to each other method, per image; on the
    set `test`, by default the first of the table."""
    test, known = test or table["test"].iloc[0], st.looks(table["method"])
    rows = table[(table["measure"] == measure) & (table["test"] == test)]
    starts = rows["initialisation"].map(lambda start: "" if start == "none" else f"\n({start})")
    rows = rows.assign(rows=rows["method"].map(lambda name: known[name].label) + starts)
    shown = {name: look for name, look in st.REDUCTIONS.items() if name in set(rows["reduction"])}
    name = "IoU" if measure == "iou" else measure.capitalize()
    title = f"Methods on the test images of {test}: {name} by reduction, and paired difference"
    figure, (axes,) = st.make_figure(1, 2, 0.6 + 0.4 * rows["rows"].nunique(), title=title, sharey=True)
    dot_interval(axes[0], rows, "rows", SCORE, f"{name}, 95% interval", "reduction", shown)
    label = "TokenCutSeg − method,\npaired per image, 95% interval"
    dot_interval(axes[1], rows[rows["reduction"] == "per_image"], "rows", DIFFERENCE, label)
    st.legend_of(figure, shown.values())
    return figure
