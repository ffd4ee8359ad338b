"""Notebook 05's figures draw the numbers of their tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
from plots.conftest import assert_drawn, rows, scored

from tokencutseg.config import configure
from tokencutseg.plots import ablations as plots
from tokencutseg.plots.charts import DIFFERENCE, SCORE

SIZES = {"codebook_size": [16, 64], "usage": [1.0, 0.75], "perplexity": [12.0, 40.0], "psnr": [24.0, 26.0]}
STEPS = [
    ("described", "", "", True, ""),
    ("segmentation.upsampling", "bilinear", "unet", True, ""),
    ("segmentation.graph_radius", 0.05, 2.6, False, "segmentation.radius_unit = cells"),
    ("revised", "", "", True, np.nan),
]
TABLES = {
    "codebook_size": scored(SIZES).assign(psnr_low=[23.5, 25.5], psnr_high=[24.4, 26.6]),
    "stages": scored({"stages": ["tokenizer", "+ transformer", "+ graph module"]}),
    "graph_radius": scored({"radius": [0.0, 1.0, 2.6], "neighbours": [0, 4, 20]}),
    "revised_steps": scored(pd.DataFrame(STEPS, columns=["step", "setting", "instead", "kept", "also"])),
}
ROWS = {
    "codebook_size": ["K = 16", "K = 64"],
    "stages": ["tokenizer", "+ transformer", "+ graph module"],
    "graph_radius": ["radius 0\n(0 neighbours)", "radius 1\n(4 neighbours)", "radius 2.6\n(20 neighbours)"],
    "revised_steps": [
        "described",
        "segmentation.upsampling\nbilinear → unet",
        "segmentation.graph_radius\n0.05 → 2.6 (+ radius_unit) ✗",
        "revised",
    ],
}


@pytest.mark.parametrize("name", TABLES)
def test_scores_and_differences_stand_beside_each_other(name):
    figure = getattr(plots, name)(TABLES[name])
    for axis, columns in zip(figure.axes[-2:], (SCORE, DIFFERENCE), strict=True):
        assert_drawn(axis, TABLES[name], columns)
        assert axis.get_xlabel()
    assert rows(figure.axes[0]) == ROWS[name] and figure.get_suptitle()


def test_codebook_size_draws_usage_perplexity_and_reconstruction():
    table = TABLES["codebook_size"].assign(usage=[100, 75])
    axes = plots.codebook_size(TABLES["codebook_size"]).axes[:3]
    for axis, columns in zip(axes, (["usage"], ["perplexity"], ["psnr", "psnr_low", "psnr_high"]), strict=True):
        assert_drawn(axis, table, columns)


def test_feature_quality_draws_each_head():
    table = scored({"features": ["colour"] * 2 + ["transformer"] * 2, "head": ["linear probe", "graph"] * 2})
    table = table.rename(columns={"mean": "iou", "low": "iou_low", "high": "iou_high"})
    score, difference = plots.feature_quality(table).axes
    assert_drawn(score, table, ["iou", "iou_low", "iou_high"])
    assert_drawn(difference, table, DIFFERENCE)


@pytest.mark.parametrize("seeds", [1, 3])
def test_label_efficiency_draws_each_method_over_the_labels(seeds):
    columns = {
        "test": ["isic2017"] * 4 + ["ham10000"] * 4,
        "method": ["tokencutseg", "unet"] * 4,
        "fraction": ([0.05] * 2 + [1.0] * 2) * 2,
        "labels": ([20] * 2 + [400] * 2) * 2,
    }
    table = scored(columns)
    table = table.assign(seeds=seeds, seed_low=table["mean"] - 0.01, seed_high=table["mean"] + 0.01)
    axes = plots.label_efficiency(table).axes
    for axis, (test, half) in zip(axes, table.groupby("test", sort=False), strict=True):
        assert test in axis.get_title()
        for line, (_, part) in zip(axis.lines, half.groupby("method", sort=False), strict=True):
            np.testing.assert_allclose(line.get_xydata(), part[["fraction", "mean"]])
        if seeds > 1:
            bars = np.array(axis.collections[-1].get_segments())[:, :, 1]
            np.testing.assert_allclose(bars, half[["seed_low", "seed_high"]])
        assert [label.get_text() for label in axis.get_xticklabels()] == ["5%, 20", "100%, 400"]


def test_label_efficiency_of_one_share_draws_the_differences():
    columns = {"test": ["isic2017"] * 3 + ["ham10000"] * 3, "method": ["tokencutseg", "unet", "fpn"] * 2}
    table = scored(columns | {"fraction": [0.05] * 6, "labels": [20] * 6}).assign(seeds=3)
    table.loc[table["method"] == "tokencutseg", list(DIFFERENCE)] = np.nan
    axes = plots.label_efficiency(table).axes
    for axis, (test, part) in zip(axes, table.groupby("test", sort=False), strict=True):
        assert test in axis.get_xlabel()
        assert_drawn(axis, part[part["method"] != "tokencutseg"], DIFFERENCE)
    assert rows(axes[0]) == ["U-Net", "FPN"]


def test_deviations_stand_beside_each_other_by_option():
    values = [("batch_size", "revised", 16, 1, -0.05), ("loss_input", "released", "probabilities", "logits", 0.2)]
    values.append(("loss_input", "revised", "logits", "probabilities", 0.01))
    table = pd.DataFrame(values, columns=["option", "recipe", "setting", "instead", "diff"]).assign(seeds=1)
    table = table.assign(diff_low=table["diff"] - 0.1, diff_high=table["diff"] + 0.1)
    revised, released = plots.deviations(table).axes
    assert rows(revised) == ["loss_input\nprobabilities ⇄ logits", "batch_size\n16 ⇄ 1"]
    assert_drawn(released, table.iloc[[1]], DIFFERENCE)
    assert_drawn(revised, table.iloc[[2, 0]], DIFFERENCE)
    assert released.get_xlim() == revised.get_xlim()


def test_efficiency_bars_start_at_zero():
    table = pd.DataFrame({"method": ["tokencutseg", "fpn"], "parameters": [1e6, 14e6], "flops": [3e8, 15e8]})
    table = table.assign(latency_seconds=[0.014, 0.031], peak_memory_bytes=[5e6, 11e6])
    axes = plots.efficiency(table).axes
    for axis, column, scale in zip(axes, table.columns[1:], (1e-6, 1e-9, 1e3, 1e-6), strict=True):
        np.testing.assert_allclose([bar.get_width() for bar in axis.patches], table[column] * scale)
        assert axis.get_xlim()[0] == 0


def test_baselines_draw_every_method_of_the_large_presets():
    methods = ["tokencutseg", *configure("small").ablation.baselines, "mine"]
    keys = itertools.product(methods, ("a", "b"), ("micro_lesion", "per_image"), ("iou", "dice"))
    table = scored(pd.DataFrame(keys, columns=["method", "test", "reduction", "measure"]))
    table["initialisation"] = table["method"].map({"otsu": "none", "mine": "none"}).fillna("imagenet")
    table.loc[table["method"] == "tokencutseg", list(DIFFERENCE)] = np.nan
    assert_drawn(plots.baselines(table).axes[0], table[(table["measure"] == "iou") & (table["test"] == "a")])
    score, difference = plots.baselines(table, "dice", "b").axes
    table = table[(table["measure"] == "dice") & (table["test"] == "b")]
    assert_drawn(score, table)
    assert_drawn(difference, table[table["reduction"] == "per_image"], DIFFERENCE)
    assert rows(score)[0] == "TokenCutSeg\n(imagenet)" and {"Otsu", "mine"} <= set(rows(score))
