"""What makes the figures one family: sizes, type, palette, legends, files, and the few shapes that recur.

Two widths; type of two sizes under a title, legible when the picture is halved; a colour keeps its meaning from figure
to figure; a legend never lies over data; and a file is as large as its canvas, so that all of them share one
scale.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from tokencutseg.files import atomic_write

WIDTH, NARROW = 7.2, 5.0
"""Inches across a page, and for one small chart alone; a figure reads at half of it."""
TITLE, TEXT, SMALL = 10.5, 9, 8
"""Points: a figure's title; labels and panel titles; ticks, legends and notes. There is no smaller type."""
_FILES: dict[str, dict[str, Any]] = {
    ".pdf": {"dpi": 150, "metadata": {"CreationDate": None, "ModDate": None}},  # the same bytes whenever it is written
    ".png": {"dpi": 150},
}
"""How a figure is saved, by suffix: type and lines as vectors for papers, and the picture that pages show, which comes
last and so tells that both are there."""

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
"""Okabe and Ito's colours, told apart under every kind of colour blindness."""
GREY = "#6E6E6E"
"""References that are no measurement: chance, an even codebook, an interval that holds zero."""
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#F0E442", GREY)
METHODS = {
    "tokencutseg": BLUE,
    "unet": ORANGE,
    "otsu": "#444444",
    "released": RED,
    "described": PURPLE,
    "revised": GREEN,
    "unetplusplus": "#7A4A00",
    "fpn": SKY,
    "deeplabv3plus": "#99004D",
    "segformer": "#8F7CEB",
    "upernet": "#10104D",
    "unet_plain": "#A89048",
}
"""One colour per method, in every figure. BLUE is also the one thing that a figure of our method alone is about (the
validation, blobs, the graph head), and SKY the plainer thing beside it (the training, single words, a linear probe)."""
_OTHERS = ("#999933", "#882255", "#117733", "#AA4499")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*", "d", "p")
TERMS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#AA4499", "#88CCEE")
"""Parts of a loss, in their order (after Tol's muted scheme); no method has these colours."""
REDUCTIONS = {
    name: (mpl.colors.to_hex(mpl.colormaps["viridis"](at)), marker)
    for name, at, marker in (
        ("micro_two_class", 0.0, "o"),
        ("micro_lesion", 0.28, "s"),
        ("per_image", 0.49, "D"),
        ("per_image_thr65", 0.77, "^"),
    )
}
"""Colour and marker of each reduction of the score."""
SEQUENTIAL, DIVERGING = "cividis", "PuOr"
HIDDEN, CHOSEN = "#D9D9D9", "#F0E442"
"""A hidden word (grey), and the words in question: a code's own cells, the word that looks (yellow)."""
REFERENCE, PREDICTED = "white", BLUE
"""Outlines of the reference mask (white with a dark edge, to be seen on any picture) and of the predicted one."""

_STYLE = {
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "figure.titlesize": TITLE,
    "figure.titleweight": "bold",
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.title_fontsize": SMALL,
    "legend.frameon": False,
    "legend.borderpad": 0.2,
    "legend.borderaxespad": 0.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "axes.unicode_minus": True,
    "image.interpolation": "nearest",
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # letters stay letters, to be searched and edited
}
# for good, and not only while a canvas is made: titles and legends read their defaults when they are set
mpl.rcParams.update(_STYLE)


class Shown(Figure):
    """A figure that a notebook shows as a picture: matplotlib's own one does so only where pyplot is in use."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def canvas(
    rows: int = 1, columns: int = 1, height: float = 2.6, width: float = WIDTH, title: str = "", **options: object
) -> tuple[Figure, np.ndarray]:
    """A figure of the family, `height` inches per row, and its axes as an array (rows, columns).

    A long title takes several lines. The figure is not known to pyplot, so nothing shows it twice and nothing has to
    close it.
    """
    lines = wrapped(title, width - 0.3, TITLE, "bold") if title else ""
    above = 0.1 + 0.2 * (lines.count("\n") + 1) if title else 0
    figure = Shown(figsize=(width, height * rows + above), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if title:
        figure.suptitle(lines)
    return figure, axes


def wrapped(text: str, width: float, size: float = SMALL, weight: str = "normal") -> str:
    """A text in as few lines as fit into `width` inches, of nearly equal lengths."""
    words = text.split()
    whole = _inches(text, size, weight)
    fewest = math.ceil(whole / width)
    for limit in (max(share * whole / max(fewest, 1), 0.01) for share in (1.0, 1.08, 1.16, 1.25)):
        lines = _broken(words, min(limit, width), size, weight)
        if len(lines) <= fewest:
            return "\n".join(lines)
    return "\n".join(_broken(words, width, size, weight))


def _broken(words: Sequence[str], width: float, size: float, weight: str) -> list[str]:
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and _inches(longer, size, weight) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _inches(text: str, size: float, weight: str = "normal") -> float:
    font = FontProperties(size=size, weight=weight)
    return max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n")) / 72


# ---- legends ---------------------------------------------------------------------------------------------------------


def legend_below(axes: Axes | Iterable[Axes], title: str | None = None) -> None:
    """A legend under each of some axes of one row, in as many columns as fit; the figure grows by the highest."""
    axes = [axes] if isinstance(axes, Axes) else list(axes)
    figure = axes[0].figure
    grown = 0.0
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        room = figure.get_figwidth() / axis.get_gridspec().ncols - 0.5
        columns, height = _fit(labels, room, title)
        lines = 1 + axis.get_xlabel().count("\n")
        ticks = 1 + max((label.get_text().count("\n") for label in axis.get_xticklabels()), default=0)
        down = 16 + 1.25 * SMALL * (ticks - 1) + 8 + 1.25 * TEXT * lines  # points from the axis to below its label
        place = axis.transAxes + ScaledTranslation(0, -down / 72, figure.dpi_scale_trans)
        axis.legend(
            handles,
            labels,
            title=title,
            ncols=columns,
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            bbox_transform=place,
            columnspacing=1.2,
            handlelength=1.8,
        )
        grown = max(grown, height)
    figure.set_figheight(figure.get_figheight() + grown)


def figure_legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> Legend:
    """One legend under the whole figure, which grows by its height."""
    columns, height = _fit(labels, figure.get_figwidth() - 0.4)
    figure.set_figheight(figure.get_figheight() + height)
    return figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.2, handlelength=1.8
    )


def _fit(labels: Sequence[str], room: float, title: str | None = None) -> tuple[int, float]:
    """Columns of a legend of such labels in so many inches, and its height."""
    each = max((_inches(label, SMALL) for label in labels), default=0) + 4.2 * SMALL / 72
    rows = math.ceil(len(labels) / max(1, int(room / each)))
    columns = max(1, math.ceil(len(labels) / max(rows, 1)))  # rows of nearly equal length
    return columns, 0.08 + 0.158 * (math.ceil(len(labels) / columns) + bool(title))


# ---- shapes ----------------------------------------------------------------------------------------------------------


def picture(axis: Axes, image: Tensor | np.ndarray, title: str = "", **options: object) -> None:
    """An image or map without ticks: RGB (3, S, S) or (S, S, 3) in [0, 1] or uint8, or values (H, W)."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    axis.imshow(array, **options)
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=SMALL, pad=3)


def word_map(axis: Axes, tokens: Tensor, codebook_size: int, title: str = "", hidden: Tensor | None = None) -> None:
    """A map of words (H, W), one colour per code; those that are `hidden` (H, W) bool are grey."""
    shown = tokens if hidden is None else tokens.float().masked_fill(hidden, torch.nan)
    picture(
        axis,
        shown,
        title,
        cmap=code_colours(codebook_size).with_extremes(bad=HIDDEN),
        vmin=-0.5,
        vmax=codebook_size - 0.5,
    )


def outline(
    axis: Axes, mask: Tensor | np.ndarray, colour: str, x: np.ndarray | None = None, y: np.ndarray | None = None
) -> None:
    """The border of a mask (S, S) drawn over a picture; nothing for an empty mask. x, y: where its pixels lie."""
    array = np.asarray(mask).astype(float)
    if array.any() and not array.all():
        place = (np.arange(array.shape[1]) if x is None else x, np.arange(array.shape[0]) if y is None else y)
        axis.contour(*place, array, [0.5], colors=[colour], linewidths=1.2).set_path_effects(_edge(colour))


def outline_legend(figure: Figure) -> None:
    """What the two outlines are."""
    handles = [
        Line2D([], [], color=colour, linewidth=1.6, path_effects=_edge(colour)) for colour in (REFERENCE, PREDICTED)
    ]
    figure_legend(figure, handles, ["reference mask", "prediction"])


def _edge(colour: str) -> list[withStroke]:
    return [withStroke(linewidth=2.6, foreground="black")] if colour == REFERENCE else []


def row_name(axis: Axes, name: str) -> None:
    """A row's name on the left of its first picture, whose axis is off."""
    axis.annotate(
        name,
        (0, 0.5),
        (-4, 0),
        xycoords="axes fraction",
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="center",
        fontsize=SMALL,
    )


def code_colours(codebook_size: int) -> ListedColormap:
    """One colour per code, neighbours in number far apart in hue: only a name tag, without an order."""
    hues = (np.arange(codebook_size) * 0.618034) % 1
    bands = np.arange(codebook_size) % 3
    hsv = np.stack([hues, np.take([0.75, 0.5, 0.9], bands), np.take([0.85, 0.95, 0.65], bands)], 1)
    return ListedColormap(mpl.colors.hsv_to_rgb(hsv))


def interval_bars(
    axis: Axes,
    names: Sequence[str],
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    colours: Sequence[str] | str = BLUE,
    marker: str = "o",
) -> None:
    """Points with 95% intervals, one row per name, the first on top. A row whose mean is NaN stays empty."""
    y = np.arange(len(names))[::-1]
    means = np.asarray(means, float)
    there = np.isfinite(means)
    colours = np.asarray([colours] * len(names) if isinstance(colours, str) else list(colours))[there]
    axis.hlines(y[there], np.asarray(lows, float)[there], np.asarray(highs, float)[there], colors=colours, linewidth=2)
    axis.scatter(means[there], y[there], c=colours, s=24, zorder=3, marker=marker)
    for value, at in zip(means[there], y[there], strict=True):
        axis.annotate(
            typeset(f"{value:.3f}"), (value, at), (0, 4), textcoords="offset points", ha="center", fontsize=SMALL
        )
    axis.set_yticks(y, names)
    axis.set_ylim(-0.5, len(names) - 0.3)
    axis.locator_params(axis="x", nbins=5)
    axis.margins(x=0.12)  # a label at the end stays within


def percent(share: float, _: object) -> str:
    """A tick's share in percent, with no more digits than it needs."""
    return f"{100 * share:.3g}%"


def typeset(number: str) -> str:
    """A number's text with a real minus, and none before a zero."""
    return number.replace("-", "−") if number.strip("-0.") else number.lstrip("-")


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write <name>.pdf and <name>.png into `folder`, each of them whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, options in _FILES.items():
        with atomic_write(folder / f"{name}{suffix}") as file:
            figure.savefig(file, format=suffix[1:], **options)


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """The family's colour of each method; those without one share a few others, in their order."""
    others = itertools.cycle(_OTHERS)
    return {method: METHODS.get(method) or next(others) for method in dict.fromkeys(methods)}


def method_markers(methods: Iterable[str]) -> dict[str, str]:
    """A marker for each method: with many methods, colours alone do not tell."""
    known = dict(zip(METHODS, _MARKERS, strict=True))
    others = itertools.cycle(("8", "h", "|", "1"))
    return {method: known.get(method) or next(others) for method in dict.fromkeys(methods)}
