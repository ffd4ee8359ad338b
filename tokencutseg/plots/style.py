"""What all figures share: sizes, theme, colours and names, legends, and image panels."""

import io
import itertools
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import seaborn as sns
import seaborn.objects as so
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from torch import Tensor

WIDTH, NARROW = 7.2, 5.0
"""Inches across a page, and of one small chart alone; a figure reads at half of it."""
SMALL = 8
"""Points of ticks, legends and notes, the smallest type."""
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
"""Okabe and Ito's colours, told apart under every kind of colour blindness."""
GREY = "#6E6E6E"
"""References that are no measurement: chance, a uniform codebook."""
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#F0E442", GREY)
TERMS = ("#332288", "#CC6677", "#117733", "#DDCC77", "#AA4499", "#88CCEE", "#999933")
"""Terms of a loss, in their order (after Tol's muted scheme); no method has these colours."""
SEQUENTIAL = "cividis"
LESION = mpl.colormaps["PuOr"].reversed()
"""From skin (purple, 0) to lesion (orange, 1), wherever a share of lesion is drawn."""
MASKED, HIGHLIGHT = "#D9D9D9", "#F0E442"
"""A masked token, and the tokens in question: those of one code, the query of an attention map."""
REFERENCE, PREDICTED = "white", BLUE
"""Outlines of the reference mask (white with a dark edge, to be seen on any image) and of the predicted one."""


class Look(NamedTuple):
    """How a method or reduction is named and drawn, the same in every figure."""

    label: str
    colour: str
    marker: str


METHODS = {
    "tokencutseg": Look("TokenCutSeg", BLUE, "o"),
    "released": Look("TokenCutSeg (released)", RED, "^"),
    "described": Look("TokenCutSeg (described)", PURPLE, "v"),
    "revised": Look("TokenCutSeg (revised)", GREEN, "D"),
    "unet": Look("U-Net", ORANGE, "s"),
    "unet_self_training": Look("U-Net + self-training", "#A89048", "p"),
    "unet_scratch": Look("U-Net (scratch)", "#5C6B2F", "8"),
    "unetplusplus": Look("U-Net++", "#7A4A00", "P"),
    "fpn": Look("FPN", SKY, "X"),
    "deeplabv3plus": Look("DeepLabV3+", "#99004D", "<"),
    "segformer": Look("SegFormer", "#8F7CEB", ">"),
    "upernet": Look("UPerNet", "#10104D", "*"),
    "otsu": Look("Otsu", "#444444", "d"),
}
REDUCTIONS = {
    "micro_two_class": Look("micro, two classes", "#440154", "o"),
    "micro_lesion": Look("micro, lesion", "#3A538B", "s"),
    "per_image": Look("per image", "#218F8D", "D"),
    "per_image_thr65": Look("per image, 0 below 0.65", "#65CB5E", "^"),
}
"""The reductions of a score (`evaluation.statistics.REDUCTIONS`), in steps of viridis."""

_THEME = {
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.5,
    "image.interpolation": "nearest",
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,  # letters stay letters, to be searched and edited
}
sns.set_theme("paper", "ticks", PALETTE, font_scale=0.91, rc=_THEME)
so.Plot.config.theme.update(mpl.rcParams)


class NotebookFigure(Figure):
    """A figure that a notebook shows as a picture; matplotlib's own is shown only where pyplot made it."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def make_figure(
    rows: int = 1, columns: int = 1, height: float = 2.6, width: float = WIDTH, title: str = "", **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `height` inches per row under a title, and its axes as an array (rows, columns)."""
    title = "\n".join(textwrap.fill(line, int(11 * width)) for line in title.splitlines())
    figure = NotebookFigure(figsize=(width, height * rows + 0.2 * (title.count("\n") + 1)), layout="constrained")
    figure.suptitle(title)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def sentence(text: str) -> Figure:
    """A figure that says in one sentence why there is nothing to draw."""
    figure, ((axis,),) = make_figure(height=0.3, title=text)
    axis.set_axis_off()
    return figure


def make_panels(
    count: int, columns: int, height: float, width: float = WIDTH, title: str = "", **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of `count` panels in rows of `columns`, as `make_figure`, and their axes in one array."""
    figure, axes = make_figure(max(1, -(-count // columns)), columns, height, width, title, **options)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, axes.flat[:count]


def looks(names: Iterable[str]) -> dict[str, Look]:
    """Label, colour and marker of each method, in its order; an unknown one gets unused ones."""
    others = zip(itertools.cycle(("#999933", "#882255", "#117733", "#AA4499")), itertools.cycle("hH8|1234"))
    return {name: METHODS.get(name) or Look(name, *next(others)) for name in dict.fromkeys(names)}


def legend_of(figure: Figure, shown: Iterable[Look], line: str = "") -> None:
    """One legend of names below the whole figure; line: the line style, if any."""
    figure_legend(figure, {name: Line2D([], [], color=c, marker=marker, ls=line) for name, c, marker in shown})


def figure_legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """One legend (label → handle) below the whole figure, which grows by its height."""
    columns = min(len(handles), max(1, int(15 * figure.get_figwidth() / (5 + max(map(len, handles))))))
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.16 * -(-len(handles) // columns))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, columnspacing=1.4)


def legend_below(axis: Axes) -> None:
    """The axis's own legend, moved below its label, without the column names that seaborn puts in."""
    items = [item for item in zip(*axis.get_legend_handles_labels(), strict=True) if item[1] not in ("term", "train")]
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.27), "borderaxespad": 0}
    axis.legend(*zip(*items, strict=True), ncols=2, columnspacing=1.2, handlelength=1.8, **place)


def code_colours(codebook_size: int) -> ListedColormap:
    """One colour per code, neighbours in number far apart in hue: only a name tag, without an order."""
    code = np.arange(codebook_size)
    saturation, brightness = np.array([[0.75, 0.5, 0.9], [0.85, 0.95, 0.65]])[:, code % 3]
    return ListedColormap(mpl.colors.hsv_to_rgb(np.stack([code * 0.618034 % 1, saturation, brightness], 1)))


def show_image(axis: Axes, image: Tensor | np.ndarray, title: str = "", side: int = 0, **options: Any) -> None:
    """An image or map without ticks: RGB (3, S, S) in [0, 1] or uint8, or values (H, W).

    A map is stretched to `side` pixels, so that outlines of pixels fit on it.
    """
    array = np.asarray(image.detach() if isinstance(image, Tensor) else image)
    if array.ndim == 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    axis.imshow(array, extent=(-0.5, side - 0.5, side - 0.5, -0.5) if side else None, **options)
    axis.set_axis_off()
    axis.set_title(title, fontsize=SMALL, pad=3)


def show_token_map(axis: Axes, tokens: Tensor, codebook_size: int, title: str = "", mask: Tensor | None = None) -> None:
    """A map of tokens (H, W), one colour per code; those under the `mask` (H, W) bool are grey."""
    shown = tokens if mask is None else tokens.float().masked_fill(mask, float("nan"))
    colours = code_colours(codebook_size).with_extremes(bad=MASKED)
    show_image(axis, shown, title, cmap=colours, vmin=-0.5, vmax=codebook_size - 0.5)


def outline(axis: Axes, mask: Tensor | np.ndarray, colour: str) -> None:
    """The border of a mask (S, S) drawn over an image; nothing for an empty or full mask."""
    array = np.asarray(mask).astype(float)
    if array.any() and not array.all():
        axis.contour(array, [0.5], colors=[colour], linewidths=1.2).set_path_effects(edge(colour))


def edge(colour: str) -> list[withStroke]:
    """The dark edge of an outline that is white."""
    return [withStroke(linewidth=2.6, foreground="black")] if colour == REFERENCE else []


def name_columns(axes: np.ndarray, names: Iterable[str]) -> None:
    """Names of columns above the titles, if any, of their first images."""
    titled = any(axis.get_title() for axis in axes)
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(f"{name}\n{axis.get_title()}" if titled else name, fontsize=SMALL, pad=3)


def label_row(axis: Axes, name: str) -> None:
    """A row's name on the left of its first image, whose axis is off."""
    axis.text(-0.04, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center", fontsize=SMALL)
