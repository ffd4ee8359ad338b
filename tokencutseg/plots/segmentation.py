"""The figures of notebook 03: the graph, its training, and the masks that come out."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from tokencutseg.models.deepcut import GridGraph
from tokencutseg.models.tokencutseg import Segmentation
from tokencutseg.plots.style import (
    BLUE,
    GREY,
    NARROW,
    PREDICTED,
    REDUCTIONS,
    REFERENCE,
    SEQUENTIAL,
    TERMS,
    canvas,
    legend_below,
    outline,
    outline_legend,
    picture,
    word_map,
)

LINES = ("-", "--", ":", "-.")
"""One line style per training set."""


def graph_stencil(grid: tuple[int, int], radius: float, unit: str, features: Tensor | None = None) -> Figure:
    """The neighbourhood of one token, and how many neighbours each token of the grid really has.

    Args:
        grid: (H, W) tokens.
        radius: in `unit`, as in `stencil_offsets`.
        unit: "image" or "cells".
        features: (1, E, H, W) of one image: a third panel shows its degrees under feature affinities.
    """
    graph = GridGraph(*grid, radius, unit)
    degree = graph.degree[0, 0]
    neighbours = len(graph.offsets) - 1
    figure, axes = canvas(
        1,
        2 if features is None else 3,
        height=2.3,
        title=(
            f"Radius {radius:.3g} {'cells' if unit == 'cells' else 'of the image side'}: {neighbours} neighbours "
            f"inside the grid, {degree[0, 0].item() - 1:.0f} in a corner"
        ),
    )
    _draw_stencil(axes[0, 0], graph, grid, radius, unit)
    _draw_degree(figure, axes[0, 1], degree, "degree d, edges of 1")
    if features is not None:
        weighted = GridGraph(*grid, radius, unit, features).degree[0, 0]
        _draw_degree(figure, axes[0, 2], weighted, "degree d, edges of likeness")
    legend_below(axes[0, 0])
    return figure


def _draw_stencil(axis: Axes, graph: GridGraph, grid: tuple[int, int], radius: float, unit: str) -> None:
    dy, dx = np.array(graph.offsets).T
    other = (dy != 0) | (dx != 0)
    axis.scatter(dx[other], dy[other], s=45, color=BLUE, label="neighbour")
    axis.scatter([0], [0], s=55, color="black", marker="s", label="the token itself")
    steps = (grid[1] - 1, grid[0] - 1) if unit == "image" else (1, 1)  # cells per unit of distance, along x and y
    axis.add_patch(
        Ellipse((0, 0), 2 * radius * steps[0], 2 * radius * steps[1], fill=False, color=GREY, linestyle="--")
    )
    reach = max(*graph.reach, 1) + 1
    axis.set(
        xlim=(-reach, reach),
        ylim=(reach, -reach),
        aspect="equal",
        xlabel="dx (tokens)",
        ylabel="dy (tokens)",
        title="one row of A: the stencil",
    )
    axis.locator_params(integer=True)


def _draw_degree(figure: Figure, axis: Axes, degree: Tensor, title: str) -> None:
    shown = axis.imshow(degree.numpy(), cmap=SEQUENTIAL)
    axis.grid(False)
    axis.set(title=title, xlabel="column (tokens)", ylabel="row (tokens)")
    axis.locator_params(integer=True)
    figure.colorbar(shown, ax=axis, shrink=0.7, ticks=MaxNLocator(5), label="d (sum of edges)")


def segmentation_curves(history: pd.DataFrame) -> Figure:
    """Training losses and validation IoU by epoch.

    `history` is the table segmentation_history: one row per training set and epoch; colours tell the quantities apart,
    line styles the training sets. A ring marks the epoch whose weights were kept.
    """
    runs = list(history.groupby("train", sort=False))
    first, rows = runs[0]
    scores = [name for name in rows if name.startswith("validation_") and name.endswith("_iou")]
    best = _chosen(rows)
    figure, axes = canvas(
        1,
        2,
        height=2.7,
        title=(
            f"{first}: the weights after epoch {best['epoch']:.0f} of {rows['epoch'].max():.0f} are kept, validation "
            f"{_words(best.name)} {best['score']:.3f}"
        ),
    )
    terms = {
        name: (TERMS[i % len(TERMS)], marker)
        for i, (name, marker) in enumerate(
            zip([name for name in rows if name.startswith("train_")], "osD^vPX<>", strict=False)
        )
    }
    scores = {name: REDUCTIONS[name.removeprefix("validation_").removesuffix("_iou")] for name in scores}
    for axis, names, prefix in ((axes[0, 0], terms, "train_"), (axes[0, 1], scores, "validation_")):
        for i, ((_, run), style) in enumerate(zip(runs, LINES, strict=False)):
            for name, (colour, marker) in names.items():
                axis.plot(
                    run["epoch"],
                    run[name],
                    style,
                    color=colour,
                    marker=marker,
                    markersize=3,
                    label=None if i else _words(name.removeprefix(prefix)),
                )
        for (train, _), style in zip(runs if len(runs) > 1 else [], LINES, strict=False):
            axis.plot([], [], style, color="black", label=train)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for _, run in runs:
        kept = _chosen(run)
        axes[0, 1].plot(kept["epoch"], kept["score"], "o", markersize=9, color="black", fillstyle="none")
    axes[0, 0].set(xlabel="epoch", ylabel="weighted loss term", title="training: the terms of the loss")
    axes[0, 1].set(xlabel="epoch", ylabel="IoU", title="validation: IoU by reduction (ring: kept)")
    legend_below(axes[0])
    return figure


def _chosen(run: pd.DataFrame) -> pd.Series:
    """Epoch and score of the kept weights; the series is named after the score that they were chosen by."""
    name = run["chosen_by"].iloc[0]
    row = run.loc[run[name].idxmax()]
    return pd.Series({"epoch": row["epoch"], "score": row[name]}, name=name)


def _words(column: str) -> str:
    return column.removeprefix("validation_").replace("_", " ").replace("iou", "IoU")


def predictions(
    images: Tensor,
    masks: Tensor,
    segmentation: Segmentation,
    grid: tuple[int, int],
    codebook_size: int,
    scores: np.ndarray,
) -> Figure:
    """From image to mask, one row per image: image, visual words, assignments, probability, outlines.

    Args:
        images: (N, 3, S, S) in [0, 1].
        masks: (N, S, S) of {0, 1}.
        segmentation: what the model says about `images`.
        grid: (H, W) tokens.
        codebook_size: K, the number of codes.
        scores: (N,) lesion IoU of each image.
    """
    N = len(images)
    figure, axes = canvas(
        N,
        5,
        height=1.55,
        title=(f"From visual words to masks: lesion IoU {min(scores):.2f} to {max(scores):.2f} on {N} test images"),
    )
    names = ("image", "visual words", "P(lesion), tokens", "P(lesion), pixels")
    lesion = segmentation.assignments[..., 1].unflatten(1, grid)
    for i, row in enumerate(axes):
        titles = names if i == 0 else [""] * len(names)
        picture(row[0], images[i], titles[0])
        word_map(row[1], segmentation.tokens[i].unflatten(0, grid), codebook_size, titles[1])
        picture(row[2], lesion[i], titles[2], cmap=SEQUENTIAL, vmin=0, vmax=1)
        picture(row[3], segmentation.probabilities[i, 1], titles[3], cmap=SEQUENTIAL, vmin=0, vmax=1)
        _outlines(row[4], images[i], masks[i], segmentation.mask[i], f"IoU {scores[i]:.2f}")
    figure.colorbar(
        axes[0, 3].images[0],
        ax=axes[:, 2:4],
        location="bottom",
        label="probability of lesion",
        shrink=0.8,
        aspect=30,
        pad=0.01,
    )
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
    figure, axes = canvas(
        3,
        n,
        height=1.85,
        title=(
            f"Lesion IoU of {len(order)} test images: best {scores[order[0]]:.2f}, median {np.median(scores):.2f}, "
            f"worst {scores[order[-1]]:.2f}"
        ),
    )
    for (name, indices), row in zip(chosen.items(), axes, strict=True):
        for i, axis in zip(indices, row, strict=True):
            _outlines(axis, images[i], masks[i], predicted[i], f"{name}: IoU {scores[i]:.2f}")
    outline_legend(figure)
    return figure


def failures(images: Tensor, masks: Tensor, predicted: Tensor, scores: np.ndarray, per_row: int = 4) -> Figure:
    """Images with both outlines in the order given, worst first; arguments as `best_median_worst`."""
    rows = -(-len(images) // per_row)
    figure, axes = canvas(
        rows,
        per_row,
        height=1.85,
        title=(f"The {len(images)} worst test images: lesion IoU {scores[0]:.2f} to {scores[-1]:.2f}"),
    )
    for i, axis in enumerate(axes.flat):
        if i < len(images):
            _outlines(axis, images[i], masks[i], predicted[i], f"IoU {scores[i]:.2f}")
        else:
            axis.remove()
    outline_legend(figure)
    return figure


def by_rank(images: Tensor, masks: Tensor, predicted: Tensor, scores: np.ndarray, rank: int) -> Figure:
    """One test image by its rank, 1 the best, and where it stands among all; arguments as `best_median_worst`."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    i = order[rank - 1]
    figure, axes = canvas(1, 2, 2.4, NARROW, title=f"Rank {rank} of {len(order)}: lesion IoU {scores[i]:.3f}")
    _outlines(axes[0, 0], images[i], masks[i], predicted[i], "")
    axes[0, 1].plot(np.arange(1, len(order) + 1), np.asarray(scores)[order], color=GREY)
    axes[0, 1].plot([rank], [scores[i]], "o", color=BLUE)
    axes[0, 1].set(xlabel="rank (1 is the best)", ylabel="lesion IoU", ylim=(0, 1), title="all test images")
    outline_legend(figure)
    return figure


def _outlines(axis: Axes, image: Tensor, mask: Tensor, predicted: Tensor, title: str) -> None:
    picture(axis, image, title)
    outline(axis, mask, REFERENCE)
    outline(axis, predicted, PREDICTED)
