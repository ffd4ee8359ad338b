"""Notebook 04's figures show the data that they are given."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from plots.conftest import assert_drawn, rows, scored, shown

from tokencutseg.data.audit import COLUMNS
from tokencutseg.data.image_set import ImageSet
from tokencutseg.plots import evaluation as plots
from tokencutseg.plots.style import METHODS, REDUCTIONS


@pytest.fixture(scope="module")
def records():
    keys = [key for key in itertools.product("a", "ab", ("tokencutseg", "otsu", "mine")) for _ in range(20)]
    table = pd.DataFrame(keys, columns=["train", "test", "method"])
    ids, scores = [*range(20)] * (len(table) // 20), np.random.default_rng(0).uniform(0, 1, len(table))
    return table.assign(id=ids, note="", iou=scores)


def test_per_image_scores_draw_the_share_of_images_at_or_below(records):
    figure = plots.per_image_scores(records)
    for axis, (_, part) in zip(figure.axes, records.groupby(["train", "test"]), strict=True):
        drawn = {line.get_color(): line for line in axis.lines if len(line.get_xdata()) > 2}
        assert len(drawn) == 3 and axis.get_title().endswith("n = 20")
        for method in ("tokencutseg", "otsu"):
            values = part.loc[part["method"] == method, "iou"]
            x, y = drawn[METHODS[method].colour].get_data()
            at = [y[np.searchsorted(x, value, side="right") - 1] for value in values]
            np.testing.assert_allclose(at, [(values <= value).mean() for value in values])


def test_cross_dataset_draws_every_mean_interval_and_published_number():
    keys = itertools.product("ab", REDUCTIONS, ("iou", "dice"))
    table = scored(pd.DataFrame(keys, columns=["test", "reduction", "measure"]))
    table = table.assign(train="a", published=np.nan, note=table["test"].map({"a": "", "b": "12 of 13"}))
    axes = plots.cross_dataset(table).axes
    for axis, measure in zip(axes, ("iou", "dice"), strict=True):
        assert_drawn(axis, table[table["measure"] == measure])
    assert rows(axes[0]) == ["a → a", "a → b*"]
    table["note"] = table["note"].replace("", "9 of 10; 12 of 13")
    title = plots.cross_dataset(table).get_suptitle().splitlines()
    assert title[1:] == ["* 9 of 10", "* 12 of 13"], "each once, on a line of its own"
    crosses = plots.cross_dataset(table.assign(published=0.8)).axes[0].collections[-1]
    assert set(crosses.get_offsets()[:, 0]) == {0.8} and len(crosses.get_offsets()) == 8


def test_score_by_lesion_size_draws_the_bins_and_each_image(records):
    table = scored({"method": ["tokencutseg"] * 2 + ["otsu"] * 2, "lesion_fraction": [0.1, 0.4] * 2})
    own = records[records["method"] == "tokencutseg"].assign(lesion_fraction=np.linspace(0.01, 0.9, 40))
    images, *lines = plots.score_by_lesion_size(table, own).axes[0].lines
    np.testing.assert_array_equal(images.get_xydata(), own[["lesion_fraction", "iou"]])
    for line, (_, part) in zip(lines, table.groupby("method", sort=False), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), part[["lesion_fraction", "mean"]])
    healthy = own.assign(lesion_fraction=own["lesion_fraction"].where(own.index % 4 > 0, 0))
    assert "(10 of 40 have no lesion" in plots.score_by_lesion_size(table, healthy).get_suptitle().replace("\n", " ")
    assert "has a lesion" in plots.score_by_lesion_size(table, own.assign(lesion_fraction=0.0)).get_suptitle()


def test_score_by_group_draws_every_group_of_the_first_training_set():
    groups = [("lesion size", "small", "a"), ("lesion size", "large", "a"), ("site", "a", "a"), ("site", "b", "b")]
    keys = [(*group, train, method) for group in groups for train in "ab" for method in ("tokencutseg", "otsu")]
    table = scored(pd.DataFrame(keys, columns=["grouping", "group", "test", "train", "method"])).assign(n=20, note="")
    axes = plots.score_by_group(table).axes
    for axis, (grouping, part) in zip(axes, table[table["train"] == "a"].groupby("grouping"), strict=True):
        assert_drawn(axis, part)
        assert grouping in axis.get_xlabel()
    assert rows(axes[1]) == ["a\nn = 20", "b\nn = 20"]


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
