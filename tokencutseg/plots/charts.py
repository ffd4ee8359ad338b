"""The three charts that recur: dots with intervals, lines with bands, and training curves."""

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
import seaborn.objects as so
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tokencutseg.plots.style import GREY, NARROW, SMALL, WIDTH, Look, legend_of, make_figure

SCORE, DIFFERENCE = ("mean", "low", "high"), ("diff", "diff_low", "diff_high")
"""Columns of a score and of a paired difference, each with the ends of its 95 % interval."""
Panel = tuple[pd.DataFrame, Sequence[str]]


def dot_interval(
    axis: Axes,
    table: pd.DataFrame,
    rows: str,
    columns: Sequence[str] = SCORE,
    label: str = "",
    series: str | None = None,
    shown: Mapping[str, Look] | None = None,
    crosses: str | None = None,
) -> None:
    """Dots with intervals, one row per name, the first on top; without series each with its number.

    table: one line per row and series; a value that is NaN leaves its place empty. rows: the column with the rows'
    names. columns: of the value and of its interval's ends, if it has one; `DIFFERENCE` gets a line at zero. label: of
    the x axis. series: the column whose values stand side by side within a row, drawn as `shown` says. crosses: a
    column of further values.
    """
    value, *ends = columns
    names, quiet = list(dict.fromkeys(table[rows])), {"legend": False}
    form = "+.3f" if columns is DIFFERENCE else ".3f" if table[value].max() <= 1 else ".3g"
    table = table.assign(number=[format(number, form).replace("-", "−") for number in table[value]])
    plot = so.Plot(table, x=value, y=rows, color=series, marker=series).on(axis)
    if ends:
        plot = plot.add(so.Range(linewidth=1.8), so.Dodge(), xmin=ends[0], xmax=ends[1], **quiet)
    plot = plot.add(so.Dot(pointsize=5), so.Dodge(), **quiet)
    if crosses:
        plot = plot.add(so.Dot(marker="x", color="black", stroke=1.5), so.Dodge(), x=crosses, **quiet)
    if shown:
        colours, markers = ({name: look[i] for name, look in shown.items()} for i in (1, 2))
        plot = plot.scale(color=colours, marker=markers)
    else:
        plot = plot.add(so.Text(color="black", fontsize=SMALL, valign="bottom", offset=4), text="number")
    plot.scale(y=so.Nominal(order=names)).label(x=label, y="").plot()
    axis.tick_params("y", length=0)
    axis.locator_params(axis="x", nbins=5 if series else 3)
    if series:
        for border in range(1, len(names)):
            axis.axhline(border - 0.5, color=GREY, linewidth=0.4)
    else:
        axis.margins(x=0.2)  # room for the numbers
        axis.set_ylim(top=-0.75)
    if columns is DIFFERENCE:
        axis.axvline(0, color=GREY, linewidth=1, zorder=0)
    if len(axis.get_shared_y_axes().get_siblings(axis)) > 1:
        axis.label_outer()


def dot_figure(
    panels: Mapping[str, Panel], rows: str, title: str, shown: Mapping[str, Look] | None = None, **series: str
) -> Figure:
    """Panels of `dot_interval` side by side: label of the x axis → table and columns; with a legend of the series.

    They share the rows where these are the same, and the x axis where the columns are.
    """
    names = [set(table[rows]) for table, _ in panels.values()]
    per_row = max(0.32 + 0.16 * max(name.count("\n") for some in names for name in some), 0.13 * (1 + len(shown or ())))
    sharex, sharey = len({columns for _, columns in panels.values()}) == 1, all(some == names[0] for some in names)
    size = 0.75 + per_row * max(map(len, names)), WIDTH if len(panels) > 1 else NARROW
    figure, (axes,) = make_figure(1, len(panels), *size, title, sharex=sharex, sharey=sharey)
    for axis, (label, (table, columns)) in zip(axes, panels.items(), strict=True):
        dot_interval(axis, table, rows, columns, label, shown=shown, **series)
    if shown:
        legend_of(figure, shown.values())
    return figure


def line_band(
    axis: Axes, table: pd.DataFrame, x: str, columns: Sequence[str], series: str, shown: Mapping[str, Look]
) -> None:
    """One line per series with its interval as a band; columns: of the value and of the interval's ends."""
    value, low, high = columns
    for name, part in table.sort_values(x).groupby(series, sort=False):
        label, colour, marker = shown[name]
        axis.plot(part[x], part[value], color=colour, marker=marker, label=label)
        axis.fill_between(part[x], part[low], part[high], color=colour, alpha=0.15, linewidth=0)


def curves(axis: Axes, history: pd.DataFrame, columns: Mapping[str, tuple[str, str]], style: str | None = None) -> None:
    """Columns of a history over the epoch: column → label and colour; those that the history lacks are left out.

    style: a column whose values are told apart by line style.
    """
    shown = {column: look for column, look in columns.items() if column in history}
    palette = dict(shown.values())
    named = history.rename(columns={column: label for column, (label, _) in shown.items()})
    named = named.melt(["epoch", *filter(None, [style])], list(palette), "term")
    look = {"palette": palette, "markers": True, "dashes": style is not None, "markeredgewidth": 0}
    sns.lineplot(named, x="epoch", y="value", hue="term", style=style or "term", errorbar=None, ax=axis, **look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def from_zero(axis: Axes) -> None:
    """The y axis from zero to a tenth above what is drawn."""
    axis.set_ylim(0, 1.1 * axis.dataLim.ymax)
