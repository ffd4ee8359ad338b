"""Notebook 03's figures, and the whole method in one, show the data that they are given."""

import numpy as np
import pandas as pd
import pytest
import torch
from plots.conftest import H, K, N, shown

from tokencutseg.models.deepcut import GridGraph
from tokencutseg.plots import segmentation as plots
from tokencutseg.plots.style import REDUCTIONS

SCORES = np.array([0.4, 0.9, 0.1, 0.7, 0.8])


@pytest.fixture(scope="module")
def segmentation(model, images):
    with torch.no_grad():
        return model(images.images / 255)


@pytest.fixture(scope="module")
def parts(images):
    return images.images / 255, images.masks, images.masks.roll(2, -1), SCORES


def test_pipeline_shows_what_the_model_computes(images, segmentation):
    offsets = [(0, 0), (0, 1), (1, 0)]
    figure = plots.pipeline(images.images[:2] / 255, segmentation, K, [*offsets, (0, 2)])  # the last: outside
    image, tokens, features, assignments, masked = shown(figure.axes)[5:]
    np.testing.assert_allclose(image, images.images[1].permute(1, 2, 0) / 255)
    np.testing.assert_array_equal(tokens.ravel(), segmentation.tokens[1])
    assert features.shape == (H, H, 3)
    np.testing.assert_allclose(assignments.ravel(), segmentation.assignments[1, :, 1])
    np.testing.assert_allclose(masked, image)
    edges = [axis for axis in figure.axes if axis.lines][1].lines
    assert [line.get_xydata()[1].tolist() for line in edges] == [[2 + dx, 2 + dy] for dy, dx in offsets]


@pytest.mark.parametrize(("radius", "unit"), [(1.5, "cells"), (0.0, "cells"), (0.4, "image")])
def test_graph_stencil_draws_every_offset_and_the_degrees(radius, unit):
    graph = GridGraph(6, 5, radius, unit)
    weighted = GridGraph(6, 5, radius, unit, torch.randn(1, 3, 6, 5))
    degrees = {"plain": graph.degree[0, 0], "weighted": weighted.degree[0, 0]}
    stencil, *maps = plots.graph_stencil(graph.offsets, degrees).axes[:3]
    drawn = {tuple(map(float, xy)) for points in stencil.collections for xy in points.get_offsets()}
    assert drawn == {(dx, dy) for dy, dx in graph.offsets}
    np.testing.assert_array_equal(shown(maps), [graph.degree[0, 0], weighted.degree[0, 0]])


@pytest.mark.parametrize("trained", [["a"], ["a", "b"]])
def test_segmentation_curves_are_the_columns_of_the_history(trained):
    columns = ["train_dice", "train_deepcut", "validation_per_image_iou", "validation_micro_two_class_iou"]
    table = pd.DataFrame(np.random.default_rng(0).uniform(size=(3 * len(trained), 4)), columns=columns)
    table = table.assign(train=np.repeat(trained, 3), epoch=[1, 2, 3] * len(trained), chosen_by=columns[2])
    losses, scores = plots.segmentation_curves(table).axes
    for axis, names in ((losses, columns[:2]), (scores, columns[2:])):
        drawn = {tuple(line.get_ydata()) for line in axis.lines if len(line.get_ydata()) == 3}
        assert drawn == {tuple(run[name]) for _, run in table.groupby("train") for name in names}
    rings = [tuple(line.get_xydata()[0]) for line in scores.lines if len(line.get_xdata()) == 1]
    kept = table.loc[table.groupby("train")["validation_per_image_iou"].idxmax()]
    assert rings == list(zip(kept["epoch"], kept["validation_per_image_iou"], strict=True))
    legend = [text.get_text() for text in scores.get_legend().get_texts()]
    assert {REDUCTIONS["per_image"].label, REDUCTIONS["micro_two_class"].label} <= set(legend)
    assert set(trained) <= set(legend) or len(trained) == 1


def test_predictions_show_each_step_of_each_image(parts, segmentation):
    images, masks, _, _ = parts
    drawn = shown(plots.predictions(images, masks, segmentation, K, SCORES).axes)
    for i in range(N):
        image, tokens, coarse, fine, outlined = drawn[5 * i : 5 * i + 5]
        np.testing.assert_allclose(image, images[i].permute(1, 2, 0))
        np.testing.assert_allclose(outlined, image)
        np.testing.assert_array_equal(tokens.ravel(), segmentation.tokens[i])
        np.testing.assert_allclose(coarse.ravel(), segmentation.assignments[i, :, 1])
        np.testing.assert_allclose(fine, segmentation.probabilities[i, 1])


def test_outlined_images_are_in_order_and_name_their_scores(parts):
    chosen = plots.best_median_worst(*parts, per_row=1), plots.failures(*parts)
    titles = ["best: IoU 0.90", "median: IoU 0.70", "worst: IoU 0.10"], [f"IoU {score:.2f}" for score in SCORES]
    for figure, names, order in zip(chosen, titles, ([1, 3, 2], range(N)), strict=True):
        assert [axis.get_title() for axis in figure.axes] == names
        np.testing.assert_allclose(shown(figure.axes), parts[0][list(order)].permute(0, 2, 3, 1))
        assert all(len(axis.collections) == 2 for axis in figure.axes), "two outlines each"


@pytest.mark.parametrize(("rank", "score"), [(1, 0.9), (3, 0.7)])
def test_by_rank_shows_the_image_of_that_rank(parts, rank, score):
    image, curve = plots.by_rank(*parts, rank).axes
    np.testing.assert_allclose(shown([image])[0], parts[0][list(SCORES).index(score)].permute(1, 2, 0))
    np.testing.assert_array_equal(curve.lines[0].get_ydata(), np.sort(SCORES)[::-1])
    assert curve.lines[1].get_xydata().tolist() == [[rank, score]]
