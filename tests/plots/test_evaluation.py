"""Notebook 04's figures show the data that they are given."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from plots.conftest import dots, rows, shown, spans

from tokencutseg import plots
from tokencutseg.data.audit import COLUMNS
from tokencutseg.data.image_set import ImageSet
from tokencutseg.plots.style import METHODS, REDUCTIONS


@pytest.fixture(scope="module")
def records():
    rng = np.random.default_rng(0)
    groups = itertools.product("a", "ab", ("tokencutseg", "otsu", "mine"))
    parts = [
        pd.DataFrame({"train": train, "test": test, "method": method, "iou": rng.uniform(0, 1, 20)})
        for train, test, method in groups
    ]
    return pd.concat(parts, ignore_index=True)


def test_per_image_scores_draw_the_share_of_images_at_or_below(records):
    figure = plots.per_image_scores(records)
    for axis, (_, part) in zip(figure.axes, records.groupby(["train", "test"]), strict=True):
        lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
        drawn = {line.get_color(): line for line in lines}
        assert len(drawn) == 3
        for method in ("tokencutseg", "otsu"):
            values, line = part.loc[part["method"] == method, "iou"], drawn[METHODS[method].colour]
            x, y = line.get_xdata(), line.get_ydata()
            at = [y[np.searchsorted(x, value, side="right") - 1] for value in values]
            np.testing.assert_allclose(at, [(values <= value).mean() for value in values])
        assert axis.get_title().endswith("n = 20")


def test_per_image_scores_of_five_pairs_take_two_rows(records):
    more = pd.concat([records.assign(train=name) for name in ("a", "b", "c")])
    assert len(plots.per_image_scores(more[(more["train"] != "c") | (more["test"] == "a")]).axes) == 5


def test_cross_dataset_draws_every_mean_interval_and_published_number(scored):
    cells = list(itertools.product("ab", REDUCTIONS, ("iou", "dice")))
    table = scored(**dict(zip(("test", "reduction", "measure"), zip(*cells, strict=True), strict=True))).assign(
        train="a"
    )
    table["published"] = np.where((table["reduction"] == "micro_two_class") & (table["test"] == "a"), 0.8, np.nan)
    figure = plots.cross_dataset(table)
    for axis, measure in zip(figure.axes, ("iou", "dice"), strict=True):
        part = table[table["measure"] == measure]
        np.testing.assert_allclose(np.sort(dots(axis)[:, 0]), np.sort([*part["mean"], 0.8]))
        np.testing.assert_allclose(spans(axis), part[["low", "high"]])
    assert rows(figure.axes[0]) == ["a → a", "a → b"]


def test_score_by_lesion_size_draws_the_bins_and_each_image(records, scored):
    table = scored(method=["tokencutseg"] * 2 + ["otsu"] * 2, lesion_fraction=[0.1, 0.4] * 2)
    own = records[records["method"] == "tokencutseg"].assign(lesion_fraction=np.linspace(0.01, 0.9, 40))
    (axis,) = plots.score_by_lesion_size(table, own).axes
    images, *lines = axis.lines
    np.testing.assert_array_equal(images.get_xydata(), own[["lesion_fraction", "iou"]])
    for line, (_, part) in zip(lines, table.groupby("method", sort=False), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), part[["lesion_fraction", "mean"]])


def test_score_by_group_draws_every_group_of_the_first_training_set(scored):
    groups = [("lesion size", "small", "a"), ("lesion size", "large", "a"), ("site", "a", "a"), ("site", "b", "b")]
    cells = [(*group, train, method) for group in groups for train in "ab" for method in ("tokencutseg", "otsu")]
    names = ("grouping", "group", "test", "train", "method")
    table = scored(**dict(zip(names, zip(*cells, strict=True), strict=True))).assign(n=20)
    figure = plots.score_by_group(table)
    for axis, (grouping, part) in zip(figure.axes, table[table["train"] == "a"].groupby("grouping"), strict=True):
        assert axis.get_title() == grouping
        np.testing.assert_allclose(dots(axis)[:, 0], part["mean"])
        np.testing.assert_allclose(spans(axis), part[["low", "high"]])
    assert rows(figure.axes[1]) == ["a\nn = 20", "b\nn = 20"]


def test_contact_sheet_shows_pairs_under_different_ids_the_doubtful_first():
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = {
        ("a", "train"): ImageSet("a", "train", ["1", "2"], pixels[:2], None, None, [(8, 8)] * 2),
        ("b", "test"): ImageSet("b", "test", ["3", "2"], pixels[2:], None, None, [(8, 8)] * 2),
    }
    found = [
        ("a", "train", "1", "b", "test", "3", "near duplicate", 40.0),
        ("a", "train", "2", "b", "test", "2", "same id", np.nan),
        ("a", "train", "1", "a", "train", "2", "near duplicate", 55.0),
    ]
    drawn = shown(plots.contact_sheet(pd.DataFrame(found, columns=COLUMNS), sets).axes)
    expected = [torch.cat([pixels[0], pixels[1]], 2), torch.cat([pixels[0], pixels[2]], 2)]
    np.testing.assert_array_equal(drawn, [both.permute(1, 2, 0) for both in expected])
