"""Notebook 04's figures show the data that they are given."""

import numpy as np
import pandas as pd
import pytest
import torch

from tokencutseg.config import configure
from tokencutseg.data.audit import COLUMNS
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.per_image import score
from tokencutseg.evaluation.statistics import summarise, summary_table
from tokencutseg.experiments import tables
from tokencutseg.plots import evaluation as figures


def title(figure):
    """In one line, however it is wrapped."""
    return " ".join(figure.get_suptitle().split())


@pytest.fixture(scope="module")
def records():
    rng, parts = np.random.default_rng(0), []
    for train, test in (("a", "a"), ("a", "b")):
        for method in ("tokencutseg", "otsu"):
            targets = np.zeros((20, 16, 16), int)
            for i, target in enumerate(targets):
                target[2 : 4 + i // 2, 2:12] = 1
            flips = rng.random(targets.shape) < 0.1
            parts.append(
                score(
                    targets ^ flips,
                    targets,
                    [f"{test}{i}" for i in range(20)],
                    boundary=False,
                    train=train,
                    test=test,
                    method=method,
                )
            )
    return pd.concat(parts, ignore_index=True)


def test_per_image_scores_draws_the_share_of_images_at_or_below(records):
    figure = figures.per_image_scores(records)
    assert len(figure.axes) == 2
    for axis, (_, rows) in zip(figure.axes, records.groupby(["train", "test"]), strict=True):
        for line, method in zip(axis.lines, ("tokencutseg", "otsu"), strict=False):
            values = rows.loc[rows["method"] == method, "iou"]
            x, y = line.get_xdata(), line.get_ydata()
            assert all(
                y[np.searchsorted(x, value, side="right") - 1] == pytest.approx((values <= value).mean())
                for value in values
            )
            assert f"{values.mean():.3f}" in line.get_label()
        assert axis.get_xlabel() and axis.get_title().endswith("n = 20")
    ours = records[(records["test"] == "a") & (records["method"] == "tokencutseg")]["iou"]
    assert f"a → a: {(ours < 0.65).mean():.0%}" in title(figure)


def test_many_methods_are_told_apart(records):
    methods = ["otsu", *configure("small").ablation.baselines[1:], "released", "mine", "yours"]
    more = pd.concat(
        [
            records[records["method"] == "tokencutseg"],
            *(records[records["method"] == "otsu"].assign(method=method) for method in methods),
        ]
    )
    figure = figures.per_image_scores(more)
    lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label().split()[0] for line in lines] == ["tokencutseg", *methods]
    assert len({line.get_color() for line in lines}) == len(lines)
    assert max(lines, key=lambda line: line.get_zorder()) is lines[0]
    assert len(figures.score_by_lesion_size(more[more["test"] == "a"], draws=50).axes[0].lines) == len(lines) + 1


def test_per_image_scores_of_five_pairs_wrap_into_two_rows(records):
    more = pd.concat([records.assign(train=name) for name in ("a", "b", "c")])
    figure = figures.per_image_scores(more[(more["train"] != "c") | (more["test"] == "a")])
    assert len(figure.axes) == 5


@pytest.fixture(scope="module")
def cross(records):
    results = summary_table(records, ["train", "test", "method"], draws=100).assign(published=np.nan)
    results.loc[(results["reduction"] == "micro_two_class") & (results["test"] == "a"), "published"] = 0.8
    return tables.cross_dataset(results)


def test_cross_dataset_draws_every_mean_interval_and_published_number(cross):
    figure = figures.cross_dataset(cross)
    for axis, measure in zip(figure.axes, ("iou", "dice"), strict=True):
        part = cross[cross["measure"] == measure]
        lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
        for reduction, rows in part.groupby("reduction"):
            assert np.array_equal(lines[reduction].get_xdata(), rows["mean"])
        ends = {tuple(segment[:, 0]) for bars in axis.collections for segment in bars.get_segments()}
        assert ends == set(zip(part["low"], part["high"], strict=True))
        crosses = [line.get_xdata() for line in axis.lines if line.get_marker() == "x" and len(line.get_xdata())]
        assert np.array_equal(np.concatenate(crosses), [0.8])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a → a", "a → b"]
    change = cross[(cross["test"] == "b") & (cross["reduction"] == "per_image") & (cross["measure"] == "iou")]
    assert f"changes by {change['change'].item():+.3f}" in title(figure)


def test_cross_dataset_without_a_second_test_set_makes_no_claim_about_one(cross):
    figure = figures.cross_dataset(cross[cross["test"] == "a"].assign(published=np.nan))
    assert "changes" not in title(figure)


def test_size_bins_partition_the_images_and_agree_with_the_bootstrap(records):
    home = records[records["test"] == "a"]
    table = figures.size_bins(home, bins=4, draws=200, seed=3)
    for method, rows in table.groupby("method"):
        part = home[home["method"] == method].sort_values("lesion_fraction", kind="stable")
        assert rows["n"].tolist() == [5, 5, 5, 5]
        assert rows["lesion_fraction"].is_monotonic_increasing
        for k, row in enumerate(rows.itertuples()):
            expected = summarise(part[5 * k : 5 * k + 5], "per_image", "iou", 200, 3)
            assert (row.mean, row.low, row.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_score_by_lesion_size_draws_the_bins_and_each_image_of_ours(records):
    home = records[records["test"] == "a"]
    figure = figures.score_by_lesion_size(home, bins=4, draws=100)
    axis, table = figure.axes[0], figures.size_bins(home, bins=4, draws=100)
    lines = {line.get_label(): line for line in axis.lines}
    for method, rows in table.groupby("method"):
        assert np.array_equal(lines[method].get_ydata(), rows["mean"])
        assert np.array_equal(lines[method].get_xdata(), rows["lesion_fraction"])
    assert sum(len(line.get_xdata()) for name, line in lines.items() if name.startswith("_")) == 20
    assert axis.get_xlabel() and axis.get_ylabel() and title(figure)


def test_score_by_group_draws_every_group_of_one_model(records):
    by = ["train", "test", "method", "grouping", "group"]
    table = pd.concat(
        [
            summary_table(records.assign(grouping=grouping, group=group), by, ["per_image"], ["iou"], 100)
            for grouping, group in (("lesion size", "small"), ("site", records["test"]))
        ],
        ignore_index=True,
    )
    figure = figures.score_by_group(table)
    assert [axis.get_xlabel() for axis in figure.axes] == ["lesion size", "site"]
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[1].lines}
    for method, drawn in lines.items():
        own = records[records["method"] == method]
        expected = [own.loc[own["test"] == test, "iou"].mean() for test in "ab"]
        np.testing.assert_allclose(drawn, expected)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["a\nn = 20", "b\nn = 20"]


def test_contact_sheet_shows_pairs_under_different_ids_the_doubtful_first():
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sets = {
        ("a", "train"): ImageSet("a", "train", ["1", "2"], pixels[:2], None, None, [(8, 8)] * 2),
        ("b", "test"): ImageSet("b", "test", ["3", "2"], pixels[2:], None, None, [(8, 8)] * 2),
    }
    pairs = pd.DataFrame(
        [
            ("a", "train", "1", "b", "test", "3", "near duplicate", 40.0),
            ("a", "train", "2", "b", "test", "2", "same id", np.nan),
            ("a", "train", "1", "a", "train", "2", "near duplicate", 55.0),
        ],
        columns=COLUMNS,
    )
    figure = figures.contact_sheet(pairs, sets)
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert len(shown) == 2 and "2 of 2 pairs" in title(figure)
    assert np.array_equal(shown[0], torch.cat([pixels[0], pixels[1]], 2).permute(1, 2, 0))
    assert np.array_equal(shown[1], torch.cat([pixels[0], pixels[2]], 2).permute(1, 2, 0))
