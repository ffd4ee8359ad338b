"""The figures of notebook 05: one per ablation table, and the whole method in one picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator, PercentFormatter
from torch import Tensor

from tokencutseg.models.deepcut import stencil_offsets
from tokencutseg.models.masked_transformer import sample_token_mask
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.plots.style import (
    BLUE,
    GREY,
    METHODS,
    NARROW,
    PREDICTED,
    SEQUENTIAL,
    SKY,
    SMALL,
    canvas,
    interval_bars,
    legend_below,
    method_colours,
    method_markers,
    outline,
    picture,
    typeset,
    word_map,
)

IOU = "lesion IoU, 95% interval"
PAIRED = "paired 95% intervals, grey where they hold 0"


def codebook_size(table: pd.DataFrame) -> Figure:
    """Usage, perplexity, reconstruction and segmentation over the codebook size K; `table` from `grids`."""
    best = table.loc[table["mean"].idxmax()]
    figure, axes = canvas(
        2,
        2,
        2.1,
        NARROW,
        title=(
            f"K = {best['codebook_size']:.0f} segments best{_ahead_of_first(table, 'K = {codebook_size:.0f}')}; "
            f"{best['usage']:.0%} of its codes are used"
        ),
    )
    usage, perplexity, psnr, iou = axes.flat
    sizes = table["codebook_size"]
    usage.plot(sizes, table["usage"], "o-", color=BLUE)
    usage.set(ylabel="codes used at least once", ylim=(0, 1.05))
    usage.yaxis.set_major_formatter(PercentFormatter(1))
    perplexity.plot(sizes, table["perplexity"], "o-", color=BLUE)
    perplexity.plot(sizes, sizes, "--", color=GREY, linewidth=1)
    perplexity.set_yscale("log", base=2)
    perplexity.yaxis.set_major_formatter("{x:g}")
    perplexity.set(ylabel="perplexity (codes)", title="dashed: all codes alike")
    _points(psnr, sizes, table["psnr"], table["psnr_low"], table["psnr_high"])
    psnr.set(ylabel="PSNR (dB), 95% interval")
    _points(iou, sizes, table["mean"], table["low"], table["high"])
    iou.set(ylabel=IOU)
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [f"{size}" for size in sizes])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel("codebook size K (log scale)")
    return figure


def _ahead_of_first(table: pd.DataFrame, name: str) -> str:
    """How far the best cell of a grid is diff of the first, whose `name` is filled in from its row."""
    first, best = table.iloc[0], table.loc[table["mean"].idxmax()]
    if best.name == first.name:
        others = f", {int((table['change_high'] < 0).sum())} of {len(table) - 1} others clearly below (paired)"
        return f" (lesion IoU {best['mean']:.3f})" + (others if len(table) > 1 else "")
    return f": {best['change']:+.3f} lesion IoU to {name.format(**first)}" + (
        ", an interval that holds 0" if best["change_low"] <= 0 <= best["change_high"] else ""
    )


def stages(table: pd.DataFrame) -> Figure:
    """The score of each stage, and the paired change that it brings; `table` from `grids`, in order."""
    steps = table.dropna(subset="change")
    largest = steps.loc[steps["change"].abs().idxmax()]
    return _ladder(
        table,
        list(table["stages"]),
        "change to the row above",
        "what the stage adds",
        typeset(
            f"“{largest['stages']}” changes the score most: {largest['change']:+.3f} lesion IoU"
            + (", an interval that holds 0" if largest["change_low"] <= 0 <= largest["change_high"] else "")
        ),
    )


def revised_steps(table: pd.DataFrame) -> Figure:
    """The score at each step from `described` to `revised`, and what the step changes; `table` from `grids`."""
    steps = table[table["step"].str.contains(".", regex=False)]
    short = _short(list(table["step"]))
    names = [
        (f"{name}{_companions(row.also)}:\n{_value(row.setting)} → {_value(row.instead)}" if "." in row.step else name)
        + ("" if row.kept else " ✗")
        for name, row in zip(short, table.itertuples(), strict=True)
    ]
    return _ladder(
        table,
        names,
        "change to the best so far",
        "what the step changes",
        f"{int(steps['kept'].sum())} of {len(steps)} steps kept (✗: not), lesion IoU from "
        f"{table['mean'].iloc[0]:.3f} to {table.loc[table['kept'], 'mean'].iloc[-1]:.3f}",
    )


def _companions(also: str) -> str:
    """The names of the switches that came along."""
    names = [part.split(" = ")[0].rpartition(".")[2] for part in also.split(", ") if part]
    return f" (+ {', '.join(names)})" if names else ""


def _ladder(table: pd.DataFrame, names: list[str], label: str, heading: str, title: str) -> Figure:
    """Scores on the left, and on the right the change of each row that has one."""
    figure, axes = canvas(1, 2, 0.9 + 0.35 * len(table), title=title, sharey=True)
    score, change = axes[0]
    interval_bars(score, names, table["mean"], table["low"], table["high"])
    score.set(xlabel=IOU, title="the score of each")
    interval_bars(
        change,
        names,
        table["change"],
        table["change_low"],
        table["change_high"],
        _clear(table["change_low"], table["change_high"], BLUE),
    )
    _zero(change, label)
    change.set_title(heading)
    figure.supxlabel(f"changes: {PAIRED}", fontsize=SMALL)
    return figure


def graph_radius(table: pd.DataFrame) -> Figure:
    """Lesion IoU over the radius of the graph, with the number of neighbours at each, and the paired change to the
    first; `table` from `grids`."""
    best = table.loc[table["mean"].idxmax()]
    figure, axes = canvas(
        1, 2, 2.7, title=(f"Radius {best['radius']:g} scores best{_ahead_of_first(table, 'radius {radius:g}')}")
    )
    score, change = axes[0]
    _points(score, table["radius"], table["mean"], table["low"], table["high"])
    score.set_ylabel(IOU)
    rest = table.dropna(subset="change")
    _points(
        change,
        rest["radius"],
        rest["change"],
        rest["change_low"],
        rest["change_high"],
        _clear(rest["change_low"], rest["change_high"], BLUE),
    )
    change.axhline(0, color="black", linewidth=0.8, zorder=0)
    change.set_ylabel(f"change to radius {table['radius'].iloc[0]:g}, paired\n95% interval, grey: holds 0")
    for axis in axes[0]:
        axis.set_xticks(table["radius"], [f"{row.radius:g}\n{row.neighbours}" for row in table.itertuples()])
        axis.set_xlabel("radius (cells of the token grid)\nneighbours of an inner cell")
    return figure


def feature_quality(table: pd.DataFrame) -> Figure:
    """Token IoU of two heads on the same frozen features; `table` from `grids`."""
    best = table.loc[table["iou"].idxmax()]
    figure, axes = canvas(
        1,
        1,
        0.8 + 0.3 * table["features"].nunique(),
        NARROW,
        title=(f"Best of all: {best['features']} features under the {best['head']} head, token IoU {best['iou']:.3f}"),
    )
    axis = axes[0, 0]
    names = list(dict.fromkeys(table["features"]))
    for head, colour, marker, shift in (("linear probe", SKY, "s", 0.13), ("graph", BLUE, "o", -0.13)):
        rows = table[table["head"] == head].set_index("features").loc[names]
        _dodged(axis, rows["iou"], rows["iou_low"], rows["iou_high"], shift, colour, head, marker)
    axis.set_yticks(range(len(names))[::-1], names)
    axis.set(xlabel="lesion IoU over the tokens\nof validation images, 95% interval", ylabel="frozen features")
    legend_below(axis)
    return figure


def label_efficiency(table: pd.DataFrame) -> Figure:
    """Lesion IoU over the share of labels, one line per method; bands are intervals, bars the range of the seeds."""
    fewest = table[table["fraction"] == table["fraction"].min()].set_index("method")["mean"]
    seeds = int(table["seeds"].min())
    figure, axes = canvas(
        1,
        1,
        2.9,
        NARROW,
        title=f"With {table['fraction'].min():.0%} of the labels: "
        + ", ".join(f"{method} {mean:.3f}" for method, mean in fewest.items()),
    )
    axis = axes[0, 0]
    colours, markers = method_colours(table["method"]), method_markers(table["method"])
    for method, rows in table.sort_values("fraction").groupby("method", sort=False):
        colour = colours[method]
        axis.plot(rows["fraction"], rows["mean"], marker=markers[method], color=colour, label=method)
        axis.fill_between(rows["fraction"], rows["low"], rows["high"], color=colour, alpha=0.18, linewidth=0)
        if seeds > 1:
            axis.vlines(rows["fraction"], rows["seed_low"], rows["seed_high"], color=colour, linewidth=3, alpha=0.6)
    axis.set_xscale("log")
    labels = table.drop_duplicates("fraction")
    axis.set_xticks(labels["fraction"], [f"{row.fraction:.0%}\n{row.labels}" for row in labels.itertuples()])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(
        xlabel="share of the training masks (log scale)\nnumber of masks",
        ylabel=IOU + (f"\nmean of {seeds} seeds, bar: their range" if seeds > 1 else "\none seed"),
    )
    legend_below(axis)
    return figure


def deviations(table: pd.DataFrame) -> Figure:
    """What turning one switch does to the score, one panel per recipe and one row per switch; `table` from `grids`.

    Rows are in the order of the first panel's changes, the best on top.
    """
    clear = int(((table["low"] > 0) | (table["high"] < 0)).sum())
    recipes, seeds = list(dict.fromkeys(table["recipe"])), int(table["seeds"].min())
    first = table.drop_duplicates("switch").sort_values("difference", ascending=False, kind="stable")
    switches = list(first["switch"])
    names = [
        _move(name, table[table["switch"] == switch]) for name, switch in zip(_short(switches), switches, strict=True)
    ]
    figure, axes = canvas(
        1,
        len(recipes),
        1.1 + 0.31 * len(switches),
        sharex=True,
        sharey=True,
        title=(
            f"{clear} of {len(table)} turned switches move{'s' if clear == 1 else ''} the score "
            f"(interval without 0; {f'{seeds} seeds' if seeds > 1 else 'one seed'})"
        ),
    )
    for axis, recipe in zip(axes[0], recipes, strict=True):
        rows = table[table["recipe"] == recipe].set_index("switch").reindex(switches)
        colour = METHODS.get(recipe, BLUE)
        interval_bars(
            axis, names, rows["difference"], rows["low"], rows["high"], _clear(rows["low"], rows["high"], colour)
        )
        axis.set_title(f"{recipe}, one switch {'corrected' if recipe == 'released' else 'set back'}")
        _zero(axis, "change in lesion IoU\n← worse        better →")
    figure.supxlabel(PAIRED, fontsize=SMALL)
    return figure


def _short(switches: list[str]) -> list[str]:
    """Names of switches without their stage, where no other has the same name then."""
    keys = [switch.rpartition(".")[2] for switch in switches]
    return [switch if keys.count(key) > 1 else key for switch, key in zip(switches, keys, strict=True)]


def _move(name: str, rows: pd.DataFrame) -> str:
    """A switch's name and its settings: from → to, or both with ⇄ where the second recipe turns it the other way."""
    moves = list(dict.fromkeys((_value(row.setting), _value(row.instead)) for row in rows.itertuples()))
    if len(moves) == 2 and moves[0] == moves[1][::-1]:
        return f"{name}\n{moves[0][0]} ⇄ {moves[0][1]}"
    return f"{name}\n" + "; ".join(f"{setting} → {instead}" for setting, instead in moves)


def efficiency(table: pd.DataFrame) -> Figure:
    """Parameters, operations, time and memory of one prediction, each on its own linear axis from zero."""
    units = {
        "parameters": ("parameters\n(million)", 1e-6),
        "flops": ("operations\n(GFLOP)", 1e-9),
        "latency_seconds": ("time\n(ms)", 1e3),
        "peak_memory_bytes": ("activations\nat peak (MB)", 1e-6),
    }
    ours = table.set_index("method").loc["tokencutseg"]
    figure, axes = canvas(
        1,
        4,
        0.9 + 0.3 * len(table),
        sharey=True,
        title=(
            f"One image takes tokencutseg {1e3 * ours['latency_seconds']:.0f} ms and {1e-9 * ours['flops']:.2f} GFLOP"
        ),
    )
    y = np.arange(len(table))[::-1]
    colours = list(table["method"].map(method_colours(table["method"])))
    for axis, (column, (label, scale)) in zip(axes[0], units.items(), strict=True):
        values = table[column] * scale
        axis.barh(y, values, color=colours, height=0.6)
        for value, at in zip(values, y, strict=True):
            axis.annotate(f"{value:.3g}", (value, at), (3, 0), textcoords="offset points", va="center", fontsize=SMALL)
        axis.set(xlabel=label, xlim=(0, 1.45 * values.max()))
        axis.locator_params(axis="x", nbins=4)
    axes[0, 0].set_yticks(y, table["method"])
    return figure


def baselines(table: pd.DataFrame, measure: str = "iou") -> Figure:
    """Every method under every reduction of the score; `table` from `grids`."""
    rows = table[table["measure"] == measure]
    reductions, methods = list(dict.fromkeys(rows["reduction"])), list(dict.fromkeys(rows["method"]))
    ours = rows[rows["method"] == methods[0]]["mean"]
    figure, axes = canvas(
        1,
        1,
        max(2.0, 0.8 + 0.1 * (len(methods) + 2) * len(reductions)),
        title=(f"The same {methods[0]} masks score {ours.min():.3f} to {ours.max():.3f}, by reduction"),
    )
    axis = axes[0, 0]
    colours, markers = method_colours(methods), method_markers(methods)
    for method, shift in zip(methods, _shifts(len(methods)), strict=True):
        own = rows[rows["method"] == method].set_index("reduction").loc[reductions]
        name = method if own["initialisation"].iloc[0] == "none" else f"{method} ({own['weights'].iloc[0]})"
        _dodged(axis, own["mean"], own["low"], own["high"], shift, colours[method], name, markers[method])
    axis.set_yticks(range(len(reductions))[::-1], reductions)
    axis.set_ylim(-0.5, len(reductions) - 0.5)
    axis.grid(False, axis="y")
    for border in range(1, len(reductions)):
        axis.axhline(border - 0.5, color=GREY, linewidth=0.5)
    axis.set(
        xlabel=f"{'IoU' if measure == 'iou' else measure.capitalize()}, 95% interval", ylabel="reduction of the score"
    )
    legend_below(axis)
    return figure


@torch.no_grad()
def pipeline(model: TokenCutSeg, image: Tensor, seed: int = 0) -> Figure:
    """One real pass of the model, from pixels to mask, with the shapes on the way.

    image: RGB (3, S, S) in [0, 1]. The hidden tokens show what the transformer is trained with; the features and all
    that follows come from the full map, as in every prediction.
    """
    words, _ = model.encode_to_tokens(image[None])
    out = model(image[None])
    _, H, W = words.shape
    size, codebook_size, d_model = image.shape[-1], model.config.vqgan.codebook_size, out.features.shape[-1]
    hidden = sample_token_mask((1, H, W), model.config.masked_gpt, torch.Generator().manual_seed(seed))[0].view(H, W)
    figure, axes = canvas(
        2,
        6,
        2.2,
        title=f"{size} × {size} pixels become {H * W} words, and the words a mask",
        width_ratios=[0.42, 1] * 3,
    )
    axes[0, 0].set_axis_off()
    picture(axes[0, 1], image, f"image\n3 × S × S, S = {size}")
    _arrow(axes[0, 2], "tokenizer")
    word_map(axes[0, 3], words[0], codebook_size, f"words of K = {codebook_size} codes\nH × W = {H} × {W}")
    _arrow(axes[0, 4], "hide")
    word_map(axes[0, 5], words[0], codebook_size, f"{hidden.float().mean():.0%} hidden:\nonly in training", hidden)
    _arrow(axes[1, 0], "trans-\nformer", "of all\nwords")
    picture(
        axes[1, 1],
        principal_colours(out.features[0]).view(H, W, 3),
        f"features as colours\nT × E = {H * W} × {d_model}",
    )
    _arrow(axes[1, 2], "graph")
    picture(
        axes[1, 3],
        out.assignments[0, :, 1].view(H, W),
        f"lesion or skin\nT × C = {H * W} × 2",
        cmap=SEQUENTIAL,
        vmin=0,
        vmax=1,
    )
    _edges(axes[1, 3], model, H, W)
    _arrow(axes[1, 4], "up-\nsample")
    picture(axes[1, 5], image, f"mask, {out.mask[0].float().mean():.0%} lesion\nS × S = {size} × {size}")
    outline(axes[1, 5], out.mask[0], PREDICTED)
    return figure


def principal_colours(features: Tensor) -> Tensor:
    """Features (T, E) on their three main axes, each stretched to [0, 1]: (T, 3)."""
    centred = features - features.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    shown = centred @ axes[:3].T
    low, high = shown.quantile(torch.tensor([0.02, 0.98]), dim=0)
    return ((shown - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def _edges(axis: Axes, model: TokenCutSeg, H: int, W: int) -> None:
    """The edges of one node of the graph, over the map of assignments."""
    seg = model.config.segmentation
    for dy, dx in stencil_offsets(H, W, seg.graph_radius, seg.radius_unit):
        axis.plot(
            [W // 2, W // 2 + dx],
            [H // 2, H // 2 + dy],
            color="black",
            linewidth=0.9,
            marker=".",
            markersize=4,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )


def _arrow(axis: Axes, label: str, below: str = "") -> None:
    """An arrow to the right in an axis of its own, with what happens on it."""
    axis.set_axis_off()
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.annotate("", (1, 0.5), (0, 0.5), arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1.6})
    axis.text(0.5, 0.54, label, ha="center", va="bottom", fontsize=SMALL)
    axis.text(0.5, 0.46, below, ha="center", va="top", fontsize=SMALL, color=GREY)


def _points(
    axis: Axes, x: Sequence[float], mean: pd.Series, low: pd.Series, high: pd.Series, colours: str | list[str] = BLUE
) -> None:
    """A line of means with an interval at each."""
    axis.plot(x, mean, "o-", color=BLUE)
    axis.vlines(x, low, high, color=colours, linewidth=2)


def _dodged(
    axis: Axes,
    mean: pd.Series,
    low: pd.Series,
    high: pd.Series,
    shift: float,
    colour: str,
    label: str,
    marker: str = "o",
) -> None:
    """One of several series of points with intervals in the same rows, the first row on top."""
    y = np.arange(len(mean))[::-1] + shift
    axis.hlines(y, low, high, color=colour, linewidth=1.6)
    axis.plot(mean, y, marker, color=colour, label=label)


def _shifts(n: int) -> np.ndarray:
    """Vertical places of n series within a row, the first on top."""
    return np.linspace(0.5, -0.5, n) * min(0.24 * (n - 1), 0.7) if n > 1 else np.zeros(1)


def _clear(low: pd.Series, high: pd.Series, colour: str) -> list[str]:
    """The colour where the interval lies on one side of zero, grey where it holds zero."""
    return [colour if a > 0 or b < 0 else GREY for a, b in zip(low, high, strict=True)]


def _zero(axis: Axes, label: str) -> None:
    axis.axvline(0, color="black", linewidth=0.8, zorder=0)
    axis.set_xlabel(label)


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
