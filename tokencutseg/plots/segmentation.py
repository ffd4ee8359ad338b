"""Figures of notebook 03: the graph, its training, and the masks; and the whole method in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tokencutseg.models.tokencutseg import Segmentation
from tokencutseg.plots.charts import curves
from tokencutseg.plots.style import (
    BLUE,
    GREY,
    NARROW,
    PREDICTED,
    REDUCTIONS,
    REFERENCE,
    SEQUENTIAL,
    SMALL,
    TERMS,
    figure_legend,
    legend_below,
    make_figure,
    outline,
    outline_legend,
    show_image,
    show_token_map,
)


def pipeline(images: Tensor, segmentation: Segmentation, codebook_size: int, offsets: Sequence = ()) -> Figure:
    """The method from pixels to mask, one row per image.

    Args:
        images: (N, 3, S, S) in [0, 1].
        segmentation: the model's output for them.
        codebook_size: K, the number of codes.
        offsets: (dy, dx) of the graph's edges, to draw those of one token over the assignments.
    """
    S, (H, W) = images.shape[-1], _grid(segmentation.tokens)
    title = f"TokenCutSeg: from {S} × {S} pixels over {H} × {W} tokens to a lesion mask"
    figure, axes = make_figure(len(images), 9, 1.5, title=title, width_ratios=[1, 0.5] * 4 + [1])
    names = (
        "image",
        f"tokens of\n{codebook_size} codes",
        "features, three\nmain axes as RGB",
        "P(lesion)\nper token",
        "mask",
    )
    steps = ("tokenizer", "trans-\nformer", "graph\ncut", "up-\nsample")
    for i, row in enumerate(axes):
        for axis, step in zip(row[1::2], steps, strict=True):
            axis.set_axis_off()
            axis.annotate("", (1.1, 0.5), (-0.1, 0.5), arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.6})
            axis.text(0.5, 0.58, step, ha="center", va="bottom", fontsize=SMALL)
        image, tokens, features, assignments, mask = row[::2]
        show_image(image, images[i])
        show_token_map(tokens, segmentation.tokens[i].view(H, W), codebook_size)
        show_image(features, _principal_colours(segmentation.features[i]).view(H, W, 3))
        show_image(assignments, segmentation.assignments[i, :, 1].view(H, W), cmap=SEQUENTIAL, vmin=0, vmax=1)
        for dy, dx in offsets:
            ends = [W // 2, W // 2 + dx], [H // 2, H // 2 + dy]
            stroke = [withStroke(linewidth=2.2, foreground="white")]
            assignments.plot(*ends, color="black", lw=0.9, marker=".", ms=4, path_effects=stroke)
        show_image(mask, images[i])
        outline(mask, segmentation.mask[i], PREDICTED)
        for axis, name in zip(row[::2], names if i == 0 else (), strict=False):
            axis.set_title(name, fontsize=SMALL, pad=3)
    return figure


def _principal_colours(features: Tensor) -> Tensor:
    """Features (T, E) on their three main axes, each stretched to [0, 1]: (T, 3)."""
    centred = features - features.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    low, high = (centred @ axes.T).quantile(torch.tensor([0.02, 0.98]), dim=0)
    return ((centred @ axes.T - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def _grid(tokens: Tensor) -> tuple[int, int]:
    """H = W of the tokens (N, T) of square images."""
    return (int(tokens.shape[1] ** 0.5),) * 2


def graph_stencil(offsets: Sequence[tuple[int, int]], degrees: Mapping[str, Tensor]) -> Figure:
    """The neighbourhood of one token, and the degree of each token of the grid.

    offsets: (dy, dx) of the graph's edges with (0, 0), the self-loop. degrees: name of the edge weights → (H, W).
    """
    title = f"The token graph: {len(offsets) - 1} neighbours inside the grid, and the degree of each token"
    figure, ((stencil, *maps),) = make_figure(1, 1 + len(degrees), 2.6, title=title)
    dy, dx = np.array(offsets).T
    other = (dy != 0) | (dx != 0)
    handles = {
        "neighbour": stencil.scatter(dx[other], dy[other], s=45, color=BLUE),
        "the token itself": stencil.scatter([0], [0], s=55, color="black", marker="s"),
    }
    reach = max(abs(np.array(offsets)).max(), 1) + 1
    stencil.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal", title="edges of one token")
    stencil.set(xlabel="dx (tokens)", ylabel="dy (tokens)")
    for axis, (name, degree) in zip(maps, degrees.items(), strict=True):
        shown = axis.imshow(degree.numpy(), cmap=SEQUENTIAL)
        axis.grid(False)
        axis.set(title=name, xlabel="column (tokens)", ylabel="row (tokens)")
        figure.colorbar(shown, ax=axis, shrink=0.7, ticks=MaxNLocator(5), label="degree (sum of edge weights)")
    for axis in (stencil, *maps):
        axis.locator_params(integer=True)
    figure_legend(figure, handles)
    return figure


def segmentation_curves(history: pd.DataFrame) -> Figure:
    """Training losses and validation IoU by epoch; a ring marks the epoch whose weights are kept.

    history: the table segmentation_history, one row per training set and epoch. Colours tell the quantities apart, line
    styles the training sets.
    """
    figure, ((losses, scores),) = make_figure(1, 2, 3.1, title="Supervised training: loss terms and validation IoU")
    terms = [name for name in history if name.startswith("train_")]
    names = {f"validation_{reduction}_iou": look for reduction, look in REDUCTIONS.items()}
    names = {column: look for column, look in names.items() if column in history}
    style = "train" if history["train"].nunique() > 1 else None
    curves(losses, history, {name: name.removeprefix("train_").replace("_", " ") for name in terms}, TERMS, style)
    labels = {column: look.label for column, look in names.items()}
    curves(scores, history, labels, [look.colour for look in names.values()], style)
    for _, run in history.groupby("train", sort=False):
        score = run["chosen_by"].iloc[0]
        kept = run.loc[run[score].idxmax()]
        scores.plot(kept["epoch"], kept[score], "o", ms=9, color="black", fillstyle="none")
    losses.set(ylabel="weighted loss term", title="training: terms of the loss")
    scores.set(ylabel="IoU", title="validation: IoU by reduction (ring: kept)")
    for axis in (losses, scores):
        legend_below(axis)
    return figure


def predictions(
    images: Tensor, masks: Tensor, segmentation: Segmentation, codebook_size: int, scores: Sequence[float]
) -> Figure:
    """From image to mask, one row per image: image, tokens, assignments, probability, outlines.

    Args:
        images: (N, 3, S, S) in [0, 1].
        masks: (N, S, S) of {0, 1}.
        segmentation: the model's output for `images`.
        codebook_size: K, the number of codes.
        scores: (N,) lesion IoU of each image.
    """
    figure, axes = make_figure(len(images), 5, 1.5, title="Test images, from tokens to masks")
    lesion = segmentation.assignments[..., 1].unflatten(1, _grid(segmentation.tokens))
    probability = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": 1}
    for i, row in enumerate(axes):
        names = ("image", "tokens", "P(lesion), tokens", "P(lesion), pixels") if i == 0 else ("",) * 4
        show_image(row[0], images[i], names[0])
        show_token_map(row[1], segmentation.tokens[i].view(lesion.shape[1:]), codebook_size, names[1])
        show_image(row[2], lesion[i], names[2], **probability)
        show_image(row[3], segmentation.probabilities[i, 1], names[3], **probability)
        _outlines(row[4], images[i], masks[i], segmentation.mask[i], f"IoU {scores[i]:.2f}")
    place = {"location": "bottom", "shrink": 0.8, "aspect": 30, "pad": 0.01}
    figure.colorbar(axes[0, 3].images[0], ax=axes[:, 2:4], label="probability of lesion", **place)
    outline_legend(figure)
    return figure


def best_median_worst(images: Tensor, masks: Tensor, predicted: Tensor, scores: np.ndarray, per_row: int = 4) -> Figure:
    """The images of highest, middle and lowest lesion IoU with both outlines, `per_row` of each.

    images (N, 3, S, S) in [0, 1] or uint8, masks and predicted (N, S, S) of {0, 1}, scores (N,).
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    n = min(per_row, len(order))
    middle = (len(order) - n) // 2
    chosen = {"best": order[:n], "median": order[middle : middle + n], "worst": order[-n:]}
    figure, axes = make_figure(3, n, 1.85, title=f"Best, median and worst of {len(order)} test images by lesion IoU")
    for (name, indices), row in zip(chosen.items(), axes, strict=True):
        for i, axis in zip(indices, row, strict=True):
            _outlines(axis, images[i], masks[i], predicted[i], f"{name}: IoU {scores[i]:.2f}")
    outline_legend(figure)
    return figure


def failures(images: Tensor, masks: Tensor, predicted: Tensor, scores: np.ndarray, per_row: int = 4) -> Figure:
    """Images with both outlines in the order given, worst first; arguments as `best_median_worst`."""
    title = f"The {len(images)} test images of lowest lesion IoU"
    figure, axes = make_figure(-(-len(images) // per_row), per_row, 1.85, title=title)
    for i, axis in enumerate(axes.flat):
        if i < len(images):
            _outlines(axis, images[i], masks[i], predicted[i], f"IoU {scores[i]:.2f}")
        else:
            axis.remove()
    outline_legend(figure)
    return figure


def by_rank(images: Tensor, masks: Tensor, predicted: Tensor, scores: np.ndarray, rank: int) -> Figure:
    """One test image by its rank, 1 the best, and its score among all; arguments as `best_median_worst`."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    i = order[rank - 1]
    title = f"Rank {rank} of {len(order)}: lesion IoU {scores[i]:.3f}"
    figure, ((image, curve),) = make_figure(1, 2, 2.4, NARROW, title)
    _outlines(image, images[i], masks[i], predicted[i], "")
    curve.plot(np.arange(1, len(order) + 1), np.asarray(scores)[order], color=GREY)
    curve.plot([rank], [scores[i]], "o", color=BLUE, ms=7)
    curve.set(xlabel="rank (1 is the best)", ylabel="lesion IoU", ylim=(0, 1), title="all test images")
    outline_legend(figure)
    return figure


def _outlines(axis: Axes, image: Tensor, mask: Tensor, predicted: Tensor, title: str) -> None:
    show_image(axis, image, title)
    outline(axis, mask, REFERENCE)
    outline(axis, predicted, PREDICTED)
