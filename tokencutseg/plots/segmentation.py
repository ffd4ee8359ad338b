"""Figures of notebook 03: the graph, its training, and the masks; and the whole method in one picture."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tokencutseg.evaluation.inspection import principal_colours
from tokencutseg.models.tokencutseg import Segmentation
from tokencutseg.plots import style as st
from tokencutseg.plots.charts import curves


def pipeline(images: Tensor, segmentation: Segmentation, codebook_size: int, offsets: Sequence = ()) -> Figure:
    """The method from pixels to mask, one row per image.

    images: (N, 3, S, S) in [0, 1]. segmentation: the model's output for them. codebook_size: K, the number of codes.
    offsets: (dy, dx) of the graph's edges, to draw those of one token over the assignments.
    """
    S, H = images.shape[-1], round(segmentation.tokens.shape[1] ** 0.5)  # the grid is square: H = W
    title = f"TokenCutSeg: from {S} × {S} pixels over {H} × {H} tokens to a lesion mask"
    inside = [(dy, dx) for dy, dx in offsets if 0 <= H // 2 + dy < H and 0 <= H // 2 + dx < H]
    figure, axes = st.make_figure(len(images), 9, 1.25, title=title, width_ratios=[1, 0.5] * 4 + [1])
    names = ("image", f"tokens of\n{codebook_size} codes", "features,\n3 main axes", "P(lesion)\nper token", "mask")
    steps = ("tokenizer", "trans-\nformer", "graph\ncut", "up-\nsample")
    for i, row in enumerate(axes):
        for axis, step in zip(row[1::2], steps, strict=True):
            axis.set_axis_off()
            axis.annotate("", (1, 0.5), (0, 0.5), arrowprops={"arrowstyle": "-|>", "color": st.GREY, "lw": 1.6})
            axis.text(0.5, 0.58, step, ha="center", va="bottom", fontsize=st.SMALL)
        image, tokens, features, assignments, mask = row[::2]
        st.show_image(image, images[i])
        st.show_token_map(tokens, segmentation.tokens[i].view(H, H), codebook_size)
        st.show_image(features, principal_colours(segmentation.features[i]).view(H, H, 3))
        st.show_image(assignments, segmentation.assignments[i, :, 1].view(H, H), cmap=st.SEQUENTIAL, vmin=0, vmax=1)
        for dy, dx in inside:
            ends = [H // 2, H // 2 + dx], [H // 2, H // 2 + dy]
            assignments.plot(*ends, color="black", lw=0.8, path_effects=[withStroke(linewidth=2, foreground="white")])
        st.show_image(mask, images[i])
        st.outline(mask, segmentation.mask[i], st.PREDICTED)
    st.name_columns(axes[0, ::2], names)
    return figure


def graph_stencil(offsets: Sequence[tuple[int, int]], degrees: Mapping[str, Tensor]) -> Figure:
    """The neighbourhood of one token, and the degree of each token of the grid.

    offsets: (dy, dx) of the graph's edges with (0, 0), the self-loop. degrees: name of the edge weights → (H, W).
    """
    title = f"The token graph: {len(offsets) - 1} neighbours inside the grid, and the degree of each token"
    figure, ((stencil, *maps),) = st.make_figure(1, 1 + len(degrees), 2.6, title=title)
    dy, dx = np.array(offsets).T
    other = (dy != 0) | (dx != 0)
    neighbour = stencil.scatter(dx[other], dy[other], s=45, color=st.BLUE)
    itself = stencil.scatter([0], [0], s=55, color="black", marker="s")
    reach = max(abs(np.array(offsets)).max(), 1) + 1
    stencil.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal", title="edges of one token")
    stencil.set(xlabel="dx (tokens)", ylabel="dy (tokens)")
    for axis, (name, degree) in zip(maps, degrees.items(), strict=True):
        shown = axis.imshow(degree.numpy(), cmap=st.SEQUENTIAL)
        axis.grid(False)
        axis.set(title=textwrap.fill(name, 20), xlabel="column (tokens)", ylabel="row (tokens)")
        figure.colorbar(shown, ax=axis, shrink=0.7, ticks=MaxNLocator(5), label="degree")
    for axis in (stencil, *maps):
        axis.locator_params(integer=True)
    st.figure_legend(figure, {"neighbour": neighbour, "the token itself": itself})
    return figure


def segmentation_curves(history: pd.DataFrame) -> Figure:
    """Training losses and validation IoU by epoch; a ring marks the epoch whose weights are kept.

    history: the table segmentation_history, one row per training set and epoch. Colours tell the quantities apart, line
    styles the training sets.
    """
    figure, ((losses, scores),) = st.make_figure(1, 2, 3.1, title="Supervised training: loss terms and validation IoU")
    terms = zip((name for name in history if name.startswith("train_")), st.TERMS, strict=False)
    names = {name: (name.removeprefix("train_").replace("_", " "), colour) for name, colour in terms}
    style = "train" if history["train"].nunique() > 1 else None
    curves(losses, history, names, style)
    curves(scores, history, {f"validation_{name}_iou": look[:2] for name, look in st.REDUCTIONS.items()}, style)
    for _, run in history.groupby("train", sort=False):
        score = run["chosen_by"].iloc[0]
        kept = run.loc[run[score].idxmax()]
        scores.plot(kept["epoch"], kept[score], "o", ms=9, color="black", fillstyle="none")
    losses.set(ylabel="weighted loss term", title="training: terms of the loss")
    scores.set(ylabel="IoU", title="validation: IoU by reduction (ring: kept)")
    for axis in (losses, scores):
        st.legend_below(axis)
    return figure


def predictions(
    images: Tensor, masks: Tensor, segmentation: Segmentation, codebook_size: int, scores: Sequence[float]
) -> Figure:
    """From image to mask, one row per image: image, tokens, assignments, probability, outlines.

    images: (N, 3, S, S) in [0, 1]. masks: (N, S, S) of {0, 1}. segmentation: the model's output for `images`.
    codebook_size: K, the number of codes. scores: (N,) lesion IoU of each image.
    """
    figure, axes = st.make_figure(len(images), 5, 1.5, title="Test images, from tokens to masks")
    H = round(segmentation.tokens.shape[1] ** 0.5)
    probability: dict[str, Any] = {"cmap": st.SEQUENTIAL, "vmin": 0, "vmax": 1}
    for i, row in enumerate(axes):
        st.show_image(row[0], images[i])
        st.show_token_map(row[1], segmentation.tokens[i].view(H, H), codebook_size)
        st.show_image(row[2], segmentation.assignments[i, :, 1].view(H, H), **probability)
        st.show_image(row[3], segmentation.probabilities[i, 1], **probability)
    st.name_columns(axes[0, :4], ("image", "tokens", "P(lesion), tokens", "P(lesion), pixels"))
    place = {"location": "bottom", "shrink": 0.8, "aspect": 30, "pad": 0.01}
    figure.colorbar(axes[0, 3].images[0], ax=axes[:, 2:4], label="probability of lesion", **place)
    return outlines(figure, axes[:, 4], images, masks, segmentation.mask, map("IoU {:.2f}".format, scores))


def best_median_worst(images: Tensor, masks: Tensor, predicted: Tensor, scores: np.ndarray, per_row: int = 4) -> Figure:
    """The images of highest, middle and lowest lesion IoU with both outlines, `per_row` of each.

    images (N, 3, S, S) in [0, 1] or uint8, masks and predicted (N, S, S) of {0, 1}, scores (N,).
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    n = min(per_row, len(order))
    middle = (len(order) - n) // 2
    i = np.concatenate([order[:n], order[middle : middle + n], order[-n:]])
    figure, axes = st.make_figure(3, n, 1.85, title=f"Best, median and worst of {len(order)} test images by lesion IoU")
    titles = map("{}: IoU {:.2f}".format, np.repeat(["best", "median", "worst"], n), np.asarray(scores)[i])
    return outlines(figure, axes.flat, images[i], masks[i], predicted[i], titles)


def failures(images: Tensor, masks: Tensor, predicted: Tensor, scores: np.ndarray) -> Figure:
    """Images with both outlines in the order given, worst first; arguments as `best_median_worst`."""
    title = f"The {len(images)} test images of lowest lesion IoU"
    figure, axes = st.make_panels(len(images), 4, 1.85, title=title)
    return outlines(figure, axes, images, masks, predicted, map("IoU {:.2f}".format, scores))


def by_rank(images: Tensor, masks: Tensor, predicted: Tensor, scores: np.ndarray, rank: int) -> Figure:
    """One test image by its rank, 1 the best, and its score among all; arguments as `best_median_worst`."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    i = order[rank - 1]
    title = f"Rank {rank} of {len(order)}: lesion IoU {scores[i]:.3f}"
    figure, ((image, curve),) = st.make_figure(1, 2, 2.4, st.NARROW, title)
    curve.plot(np.arange(1, len(order) + 1), np.asarray(scores)[order], color=st.GREY)
    curve.plot([rank], [scores[i]], "o", color=st.BLUE, ms=7)
    curve.set(xlabel="rank (1 is the best)", ylabel="lesion IoU", ylim=(0, 1), title="all test images")
    curve.locator_params(axis="x", integer=True)
    return outlines(figure, [image], images[[i]], masks[[i]], predicted[[i]], [""])


def outlines(figure: Figure, axes: Iterable[Axes], *parts: Iterable[Any]) -> Figure:
    """Images, masks, predictions and titles on an axis each, and the legend of the outlines."""
    for axis, image, mask, predicted, title in zip(axes, *parts, strict=False):
        st.show_image(axis, image, title)
        st.outline(axis, mask, st.REFERENCE)
        st.outline(axis, predicted, st.PREDICTED)
    colours = {"reference mask": st.REFERENCE, "prediction": st.PREDICTED}
    st.figure_legend(figure, {name: Line2D([], [], color=c, path_effects=st.edge(c)) for name, c in colours.items()})
    return figure
