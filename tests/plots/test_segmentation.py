"""Notebook 03's figures show the data that they are given."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tokencutseg.models.deepcut import GridGraph, stencil_offsets
from tokencutseg.models.tokencutseg import Segmentation
from tokencutseg.plots import segmentation as figures

N, S, GRID, K = 5, 16, (4, 4), 8


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(N, 3, S, S, generator=generator)
    masks = torch.zeros(N, S, S, dtype=torch.uint8)
    masks[:, 4:10, 5:12] = 1
    predicted = masks.roll(1, -1)
    return images, masks, predicted, np.array([0.4, 0.9, 0.1, 0.7, 0.8])


def history():
    return pd.DataFrame(
        {
            "train": ["a"] * 3 + ["b"] * 3,
            "chosen_by": "validation_per_image_iou",
            "epoch": [1, 2, 3] * 2,
            "train_dice": [0.9, 0.5, 0.4, 0.8, 0.7, 0.6],
            "train_deepcut": [-0.1, -0.2, -0.15, -0.1, -0.1, -0.1],
            "validation_cross_entropy": [0.5] * 6,
            "validation_per_image_iou": [0.3, 0.75, 0.7, 0.2, 0.3, 0.4],
            "validation_micro_two_class_iou": [0.6, 0.8, 0.85, 0.5, 0.6, 0.7],
        }
    )


def title(figure):
    """In one line, however it is wrapped."""
    return " ".join(figure.get_suptitle().split())


def pictures(figure):
    return [axis.images[0] for axis in figure.axes if axis.images and isinstance(axis.images[0], AxesImage)]


@pytest.mark.parametrize(("radius", "unit"), [(1.5, "cells"), (0.0, "cells"), (0.4, "image")])
def test_graph_stencil_draws_every_offset_and_the_degrees(radius, unit):
    figure = figures.graph_stencil((6, 5), radius, unit)
    stencil, degrees = figure.axes[:2]
    offsets = stencil_offsets(6, 5, radius, unit)
    drawn = {tuple(map(float, xy)) for points in stencil.collections for xy in points.get_offsets()}
    assert drawn == {(dx, dy) for dy, dx in offsets}
    assert np.array_equal(degrees.images[0].get_array(), GridGraph(6, 5, radius, unit).degree[0, 0])
    assert f"{len(offsets) - 1} neighbours" in title(figure)
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in (stencil, degrees))


def test_graph_stencil_shows_weighted_degrees_of_given_features():
    features = torch.randn(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    figure = figures.graph_stencil((6, 5), 1.5, "cells", features)
    expected = GridGraph(6, 5, 1.5, "cells", features).degree[0, 0]
    assert np.array_equal(figure.axes[2].images[0].get_array(), expected)


def test_segmentation_curves_are_the_columns_of_the_history():
    table = history()
    figure = figures.segmentation_curves(table)
    losses, scores = figure.axes
    lines = [line for axis in (losses, scores) for line in axis.lines]
    styles = {line.get_label(): line.get_linestyle() for line in lines if len(line.get_xdata()) == 0}
    names = {line.get_color(): line.get_label() for line in lines if not line.get_label().startswith("_")}
    drawn = {
        (names[line.get_color()], line.get_linestyle()): line.get_ydata()
        for line in lines
        if len(line.get_xdata()) == 3
    }
    assert styles.keys() == {"a", "b"} and len(set(styles.values())) == 2
    for train, rows in table.groupby("train"):
        style = styles[train]
        assert np.array_equal(drawn["dice", style], rows["train_dice"])
        assert np.array_equal(drawn["image lesion IoU", style], rows["validation_per_image_iou"])
        assert np.array_equal(drawn["pooled two class IoU", style], rows["validation_micro_two_class_iou"])
    rings = [(line.get_xdata()[0], line.get_ydata()[0]) for line in scores.lines if len(line.get_xdata()) == 1]
    assert rings == [(2, 0.75), (3, 0.4)]
    assert "after epoch 2 of 3 are kept, validation image lesion IoU 0.750" in title(figure)
    assert (losses.get_xlabel(), scores.get_xlabel(), scores.get_ylabel()) == ("epoch", "epoch", "IoU")


def test_predictions_shows_each_step_of_each_image(data):
    images, masks, _, scores = data
    T, generator = GRID[0] * GRID[1], torch.Generator().manual_seed(1)
    tokens = torch.randint(0, K, (N, T), generator=generator)
    assignments = torch.rand(N, T, 2, generator=generator).softmax(-1)
    probabilities = torch.rand(N, 2, S, S, generator=generator)
    said = Segmentation(tokens, torch.zeros(N, T, 3), assignments, probabilities, probabilities, torch.zeros(()))
    figure = figures.predictions(images, masks, said, GRID, K, scores)
    assert "0.10 to 0.90 on 5 test images" in title(figure)
    shown = [np.asarray(part.get_array()) for part in pictures(figure)]
    for i in range(N):
        image, words, coarse, fine, outlined = shown[5 * i : 5 * i + 5]
        assert np.allclose(image, images[i].permute(1, 2, 0)) and np.allclose(outlined, image)
        assert np.array_equal(words.ravel(), tokens[i])
        assert np.allclose(coarse.ravel(), assignments[i, :, 1])
        assert np.allclose(fine, probabilities[i, 1])


def test_best_median_worst_are_in_order_of_their_scores(data):
    figure = figures.best_median_worst(*data, per_row=1)
    images, _, _, _ = data
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["best: IoU 0.90", "median: IoU 0.70", "worst: IoU 0.10"]
    for shown, i in zip(pictures(figure), (1, 3, 2), strict=True):
        assert np.allclose(shown.get_array(), images[i].permute(1, 2, 0))
    assert "best 0.90, median 0.70, worst 0.10" in title(figure)


def test_best_median_worst_with_fewer_images_than_columns(data):
    figure = figures.best_median_worst(*(part[:2] for part in data))
    assert len(pictures(figure)) == 6


@pytest.mark.parametrize(("rank", "score"), [(1, 0.9), (3, 0.7), (5, 0.1)])
def test_by_rank_shows_the_image_of_that_rank(data, rank, score):
    figure = figures.by_rank(*data, rank)
    assert isinstance(figure, Figure)
    picture, curve = figure.axes
    assert f"{score:.3f}" in title(figure)
    index = list(data[3]).index(score)
    assert np.allclose(picture.images[0].get_array(), data[0][index].permute(1, 2, 0))
    assert np.array_equal(curve.lines[0].get_ydata(), np.sort(data[3])[::-1])
    assert (curve.lines[1].get_xdata()[0], curve.lines[1].get_ydata()[0]) == (rank, score)


def test_failures_keep_their_order(data):
    images, masks, predicted, scores = data
    order = np.argsort(scores)[:5]
    figure = figures.failures(images[order], masks[order], predicted[order], np.asarray(scores)[order])
    assert [axis.get_title() for axis in figure.axes] == [f"IoU {scores[i]:.2f}" for i in order]
