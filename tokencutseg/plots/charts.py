"""The three charts that recur: dots with intervals, lines with bands, and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import seaborn as sns
import seaborn.objects as so
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tokencutseg.plots.style import GREY, SMALL, WIDTH, Look, make_figure

SCORE = ("mean", "low", "high")
DIFFERENCE = ("diff", "diff_low", "diff_high")
"""Columns of a score and of a paired difference, each with the ends of its 95 % interval."""


def dot_interval(
    axis: Axes,
    table: pd.DataFrame,
    rows: str,
    columns: Sequence[str] = SCORE,
    series: str | None = None,
    shown: Mapping[str, Look] | None = None,
    label: str = "",
    zero: bool = False,
    numbers: str = "",
    crosses: str | None = None,
) -> None:
    """Dots with intervals, one row per name, the first on top.

    Args:
        axis: to draw on.
        table: one line per row and series; a value that is NaN leaves its place empty.
        rows: the column with the rows' names.
        columns: the column of the value, or those of the value and of its interval's ends.
        series: the column whose values stand side by side within a row, drawn as `shown` says.
        shown: value of `series` → its colour and marker.
        label: of the x axis.
        zero: draw a line at zero, for differences.
        numbers: format of the numbers written at the dots, as in "+.3f"; none if empty.
        crosses: a column of further values, marked by black crosses.
    """
    value, *ends = columns
    if numbers:
        table = table.assign(number=[format(x, numbers).replace("-", "−") for x in table[value]])
    plot = so.Plot(table, x=value, y=rows, color=series, marker=series).on(axis)
    if ends:
        plot = plot.add(so.Range(linewidth=1.8), so.Dodge(), xmin=ends[0], xmax=ends[1], legend=False)
    plot = plot.add(so.Dot(pointsize=5), so.Dodge(), legend=False)
    if numbers:
        plot = plot.add(so.Text(color="black", fontsize=SMALL, valign="bottom", offset=4), so.Dodge(), text="number")
    if crosses:
        plot = plot.add(so.Dot(marker="x", color="black", stroke=1.5), so.Dodge(), x=crosses, legend=False)
    scales: dict[str, Any] = {"y": so.Nominal(order=list(dict.fromkeys(table[rows])))}
    if series:
        scales |= {"color": {name: look.colour for name, look in shown.items()}}
        scales |= {"marker": {name: look.marker for name, look in shown.items()}}
    plot.scale(**scales).label(x=label, y="").plot()
    axis.tick_params("y", length=0)
    axis.locator_params(axis="x", nbins=5)
    axis.margins(x=0.14 if numbers else 0.05)
    if zero:
        axis.axvline(0, color=GREY, linewidth=1, zorder=0)
    if series:
        for border in range(1, table[rows].nunique()):
            axis.axhline(border - 0.5, color=GREY, linewidth=0.4)


def dot_interval_panels(
    table: pd.DataFrame,
    rows: str,
    panels: Mapping[str, Sequence[str]],
    title: str,
    width: float = WIDTH,
    **options: Any,
) -> tuple[Figure, Sequence[Axes]]:
    """Panels of `dot_interval` side by side over the same rows: label of the x axis → columns.

    Differences get a line at zero. More `options` are those of `dot_interval`.
    """
    per_row = 0.16 * (1 + max(str(name).count("\n") for name in table[rows])) + 0.16
    figure, (axes,) = make_figure(1, len(panels), 0.75 + per_row * table[rows].nunique(), width, title, sharey=True)
    for axis, (label, columns) in zip(axes, panels.items(), strict=True):
        zero = columns[0] == "diff"
        numbers = "" if options.get("series") else options.get("numbers", "+.3f" if zero else ".3f")
        dot_interval(axis, table, rows, columns, label=label, zero=zero, **(options | {"numbers": numbers}))
    return figure, axes


def line_band(
    axis: Axes, table: pd.DataFrame, x: str, columns: Sequence[str], series: str, shown: Mapping[str, Look]
) -> None:
    """One line per series with its interval as a band; columns: of the value and of the interval's ends."""
    value, low, high = columns
    for name, part in table.sort_values(x).groupby(series, sort=False):
        look = shown[name]
        axis.plot(part[x], part[value], color=look.colour, marker=look.marker, label=look.label)
        axis.fill_between(part[x], part[low], part[high], color=look.colour, alpha=0.18, linewidth=0)


def curves(
    axis: Axes, history: pd.DataFrame, columns: Mapping[str, str], colours: Sequence[str], style: str | None = None
) -> None:
    """Columns of a history (column → label; those that it lacks are left out) over the epoch, coloured in their order.

    style: a column whose values are told apart by line style.
    """
    columns = {column: label for column, label in columns.items() if column in history}
    table = history.rename(columns=columns).melt(["epoch", *([style] if style else [])], list(columns.values()), "term")
    sns.lineplot(
        table,
        x="epoch",
        y="value",
        hue="term",
        style=style or "term",
        palette=list(colours[: len(columns)]),
        markers=True,
        dashes=style is not None,
        markeredgewidth=0,
        errorbar=None,
        ax=axis,
    )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
