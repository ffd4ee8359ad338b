"""Figures of notebook 05, one per table of ablations.

The tables are those of `experiments.ablations`; scores are lesion IoU, differences are paired.
"""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tokencutseg.plots import style as st
from tokencutseg.plots.charts import DIFFERENCE, SCORE, dot_interval, dot_interval_panels, line_band

IOU = "lesion IoU, 95% interval"
HEADS = {"linear probe": st.Look("linear probe", st.SKY, "s"), "graph": st.Look("graph head", st.BLUE, "o")}


def codebook_size(table: pd.DataFrame) -> Figure:
    """Usage, perplexity, reconstruction and segmentation over the codebook size K."""
    panels = {
        "codes used\n(%)": ("usage",),
        "perplexity\n(codes)": ("perplexity",),
        "PSNR (dB),\n95% interval": ("psnr", "psnr_low", "psnr_high"),
        "lesion IoU,\n95% interval": SCORE,
        f"difference to\nK = {table['codebook_size'].iloc[0]}, paired": DIFFERENCE,
    }
    table = table.assign(rows="K = " + table["codebook_size"].astype(str), usage=100 * table["usage"])
    title = "Tokenization and segmentation of validation images by codebook size K"
    return dot_interval_panels(table, "rows", panels, title)[0]


def stages(table: pd.DataFrame) -> Figure:
    """The score of each stage, and its difference to the row above."""
    panels = {IOU: SCORE, "paired difference to row above": DIFFERENCE}
    return dot_interval_panels(table, "stages", panels, "Stages added one by one: validation images")[0]


def revised_steps(table: pd.DataFrame) -> Figure:
    """The score at each step from `described` to `revised`, and its difference to the best so far (✗: not kept)."""
    names = [
        (f"{name}{_coupled(row.also)}:\n{_value(row.setting)} → {_value(row.instead)}" if "." in row.step else name)
        + ("" if row.kept else " ✗")
        for name, row in zip(_short(list(table["step"])), table.itertuples(), strict=True)
    ]
    panels = {IOU: SCORE, "paired difference to best so far": DIFFERENCE}
    title = "Steps from the described to the revised method (✗: not kept), validation images"
    return dot_interval_panels(table.assign(rows=names), "rows", panels, title)[0]


def graph_radius(table: pd.DataFrame) -> Figure:
    """The score over the radius of the graph, and its difference to the first row."""
    names = [f"radius {row.radius:g}\n({row.neighbours} neighbours)" for row in table.itertuples()]
    panels = {IOU: SCORE, f"paired difference to radius {table['radius'].iloc[0]:g}": DIFFERENCE}
    title = "Radius of the token graph (in tokens): validation images"
    return dot_interval_panels(table.assign(rows=names), "rows", panels, title)[0]


def feature_quality(table: pd.DataFrame) -> Figure:
    """Token IoU of two heads on the same frozen features, and the difference of the transformer's output to each."""
    panels = {
        "lesion IoU over tokens, 95% interval": ("iou", "iou_low", "iou_high"),
        "transformer output − features": DIFFERENCE,
    }
    panels = {label: columns for label, columns in panels.items() if columns[0] in table}
    title = "Two heads on the same frozen features: tokens of validation images"
    figure, axes = dot_interval_panels(table, "features", panels, title, series="head", shown=HEADS)
    axes[0].set_ylabel("frozen features")
    st.legend_of(figure, HEADS.values())
    return figure


def label_efficiency(table: pd.DataFrame) -> Figure:
    """The score over the share of labels, one line per method; bands are intervals, bars the range of the seeds."""
    shown, seeds = st.looks(table["method"]), int(table["seeds"].min())
    title = "Lesion IoU on test images by share of labels"
    figure, ((axis,),) = st.make_figure(1, 1, 3.1, st.NARROW, title)
    line_band(axis, table, "fraction", SCORE, "method", shown)
    if seeds > 1:
        colours = table["method"].map(lambda name: shown[name].colour)
        axis.vlines(table["fraction"], table["seed_low"], table["seed_high"], color=colours, linewidth=3, alpha=0.6)
    labels = table.drop_duplicates("fraction")
    axis.set_xscale("log")
    axis.set_xticks(labels["fraction"], [f"{st.percent(row.fraction)}\n{row.labels}" for row in labels.itertuples()])
    axis.xaxis.set_minor_locator(NullLocator())
    note = f"\nmean of {seeds} seeds, bar: their range" if seeds > 1 else "\none seed"
    axis.set(xlabel="share of the training masks (log scale)\nnumber of masks", ylabel=IOU + note)
    st.legend_of(figure, shown.values(), "-")
    return figure


def deviations(table: pd.DataFrame) -> Figure:
    """What changing one option does to the score, one panel per recipe and one row per option.

    Rows are in the order of the first panel's differences, the largest on top.
    """
    first = table.drop_duplicates("switch").sort_values("diff", ascending=False, kind="stable")
    options = list(first["switch"])
    names = {
        option: f"{name}\n{_change(table[table['switch'] == option])}"
        for name, option in zip(_short(options), options, strict=True)
    }
    seeds, recipes = int(table["seeds"].min()), list(dict.fromkeys(table["recipe"]))
    title = f"One option changed at a time: validation images, {f'{seeds} seeds' if seeds > 1 else 'one seed'}"
    figure, (axes,) = st.make_figure(1, len(recipes), 0.8 + 0.42 * len(options), title=title, sharex=True, sharey=True)
    for axis, recipe in zip(axes, recipes, strict=True):
        part = table[table["recipe"] == recipe].set_index("switch").reindex(options).reset_index()
        part = part.assign(rows=part["switch"].map(names), recipe=recipe)
        label = "paired difference in lesion IoU\n← worse        better →"
        dot_interval(axis, part, "rows", DIFFERENCE, label)
        axis.set_title(f"{recipe}, one option {'corrected' if recipe == 'released' else 'set back'}")
    return figure


def _short(options: list[str]) -> list[str]:
    """Names of options without their stage, where no other has the same name then."""
    keys = [option.rpartition(".")[2] for option in options]
    return [option if keys.count(key) > 1 else key for option, key in zip(options, keys, strict=True)]


def _change(rows: pd.DataFrame) -> str:
    """An option's settings: from → to, or both with ⇄ where the second recipe changes it the other way."""
    moves = list(dict.fromkeys((_value(row.setting), _value(row.instead)) for row in rows.itertuples()))
    if len(moves) == 2 and moves[0] == moves[1][::-1]:
        return f"{moves[0][0]} ⇄ {moves[0][1]}"
    return "; ".join(f"{setting} → {instead}" for setting, instead in moves)


def _coupled(also: object) -> str:
    """The names of the options that change along with another."""
    names = [part.split(" = ")[0].rpartition(".")[2] for part in str(also).split(", ") if "." in part]
    return f" (+ {', '.join(names)})" if names else ""


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def efficiency(table: pd.DataFrame) -> Figure:
    """Parameters, operations, time and memory of one prediction, each on its own linear axis from zero."""
    units = {
        "parameters": ("parameters\n(million)", 1e-6),
        "flops": ("operations\n(GFLOP)", 1e-9),
        "latency_seconds": ("time\n(ms)", 1e3),
        "peak_memory_bytes": ("activations\nat peak (MB)", 1e-6),
    }
    shown = st.looks(table["method"])
    palette = {look.label: look.colour for look in shown.values()}
    table = table.assign(label=table["method"].map(lambda name: shown[name].label))
    title = "Cost of one prediction on one image"
    figure, (axes,) = st.make_figure(1, 4, 0.7 + 0.28 * len(table), title=title, sharey=True)
    for axis, (column, (name, scale)) in zip(axes, units.items(), strict=True):
        part = table.assign(value=table[column] * scale)
        sns.barplot(part, x="value", y="label", hue="label", palette=palette, saturation=1, ax=axis)
        for bars in axis.containers:
            axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=st.SMALL)
        axis.set(xlabel=name, ylabel="", xlim=(0, 1.45 * part["value"].max()))
        axis.locator_params(axis="x", nbins=4)
    return figure


def baselines(table: pd.DataFrame, measure: str = "iou") -> Figure:
    """Every method under every reduction, and TokenCutSeg's paired difference to each other method, per image."""
    rows, known = table[table["measure"] == measure], st.looks(table["method"])
    names = [
        known[row.method].label + (f"\n({row.initialisation})" if row.initialisation != "none" else "")
        for row in rows.itertuples()
    ]
    rows = rows.assign(rows=names)
    shown = {name: look for name, look in st.REDUCTIONS.items() if name in set(rows["reduction"])}
    name = "IoU" if measure == "iou" else measure.capitalize()
    title = f"Methods on the same test images: {name} by reduction, and paired difference"
    figure, (axes,) = st.make_figure(1, 2, 0.6 + 0.4 * rows["rows"].nunique(), title=title, sharey=True)
    dot_interval(axes[0], rows, "rows", SCORE, f"{name}, 95% interval", "reduction", shown)
    label = "TokenCutSeg − method,\npaired per image, 95% interval"
    per_image = rows[rows["reduction"] == "per_image"]
    dot_interval(axes[1], per_image, "rows", DIFFERENCE, label)
    st.legend_of(figure, shown.values())
    return figure
