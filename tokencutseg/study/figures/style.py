"""What makes the figures one family: palette, type, sizes, and the few shapes that recur."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

WIDTH = 7.2
"""Inches across a page; a figure reads at half of it."""
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#6E6E6E"
"""Okabe and Ito's colours, told apart under every kind of colour blindness."""
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, "#56B4E9", "#F0E442", GREY)
METHODS = {"tokencutseg": BLUE, "unet": ORANGE, "otsu": GREY, "released": RED, "described": PURPLE, "revised": GREEN,
           "unetplusplus": "#8C510A", "fpn": "#56B4E9", "deeplabv3plus": "#882255", "segformer": "#44AA99",
           "upernet": "#999933"}
"""One colour per method, in every figure."""
_OTHERS = ("#332288", "#DDCC77", "#117733", "#AA4499")
SEQUENTIAL, DIVERGING = "cividis", "PuOr"

_STYLE = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "figure.titlesize": 10.5, "figure.titleweight": "bold",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
    "legend.frameon": False, "axes.prop_cycle": mpl.cycler(color=PALETTE), "image.interpolation": "nearest",
}
# for good, and not only while a canvas is made: titles and legends read their defaults when they are set
mpl.rcParams.update(_STYLE)


class Shown(Figure):
    """A figure that a notebook shows as a picture: matplotlib's own one does so only where pyplot is in use."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        return buffer.getvalue()


def canvas(rows: int = 1, columns: int = 1, height: float = 2.6, width: float = WIDTH, title: str = "",
           **options: object) -> tuple[Figure, np.ndarray]:
    """A figure of the family, `height` inches per row, and its axes as an array (rows, columns).

    It is not known to pyplot, so nothing shows it twice and nothing has to close it.
    """
    figure = Shown(figsize=(width, height * rows + (0.35 if title else 0)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    if title:
        figure.suptitle(title, fontsize=10.5, fontweight="bold")
    return figure, axes


def picture(axis: Axes, image: Tensor | np.ndarray, title: str = "", **options: object) -> None:
    """An image or map without ticks: RGB (3, S, S) or (S, S, 3) in [0, 1] or uint8, or values (H, W)."""
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    axis.imshow(array, **options)
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=8.5)


def outline(axis: Axes, mask: Tensor | np.ndarray, colour: str, label: str | None = None) -> None:
    """The border of a mask (S, S) drawn over a picture; nothing for an empty mask."""
    array = np.asarray(mask).astype(float)
    if array.any() and not array.all():
        axis.contour(array, [0.5], colors=[colour], linewidths=1.4)
    if label:
        axis.plot([], [], color=colour, label=label)


def code_colours(n_embed: int) -> ListedColormap:
    """One colour per code, neighbours in number far apart in hue: only a name tag, without an order."""
    hues = (np.arange(n_embed) * 0.618034) % 1
    bands = np.arange(n_embed) % 3
    hsv = np.stack([hues, np.take([0.75, 0.5, 0.9], bands), np.take([0.85, 0.95, 0.65], bands)], 1)
    return ListedColormap(mpl.colors.hsv_to_rgb(hsv))


def interval_bars(axis: Axes, names: Sequence[str], means: Sequence[float], lows: Sequence[float],
                  highs: Sequence[float], colours: Sequence[str] | str = BLUE) -> None:
    """Points with 95 % intervals, one row per name, the first on top. Intervals stand where bars would lie."""
    y = np.arange(len(names))[::-1]
    means = np.asarray(means, float)
    axis.hlines(y, lows, highs, colors=colours, linewidth=2)
    axis.scatter(means, y, c=colours, s=28, zorder=3)
    for value, at in zip(means, y, strict=True):
        axis.annotate(f"{value:.3f}", (value, at), (0, 5), textcoords="offset points", ha="center", fontsize=7.5)
    axis.set_yticks(y, names)
    axis.set_ylim(-0.6, len(names) - 0.4)


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """The family's colour of each method; those without one share a few others, in their order."""
    others = itertools.cycle(_OTHERS)
    return {method: METHODS.get(method) or next(others) for method in dict.fromkeys(methods)}
