"""Notebook 05's figures draw the numbers of their tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
from plots.conftest import dots, rows, spans

from tokencutseg import plots
from tokencutseg.config import configure
from tokencutseg.plots import ablations


@pytest.fixture(scope="module")
def tables(scored):
    steps = scored(step=["described", "segmentation.upsampling", "segmentation.graph_radius", "revised"])
    return {
        "codebook_size": scored(codebook_size=[16, 64], usage=[1.0, 0.75], perplexity=[12.0, 40.0]).assign(
            psnr=[24.0, 26.0], psnr_low=[23.5, 25.5], psnr_high=[24.4, 26.6]
        ),
        "stages": scored(stages=["tokenizer", "+ transformer", "+ graph module"]),
        "graph_radius": scored(radius=[0.0, 1.0, 2.6], neighbours=[0, 4, 20]),
        "revised_steps": steps.assign(
            setting=[None, "bilinear", 0.05, None],
            instead=[None, "guided", 2.6, None],
            kept=[True, True, False, True],
            also=[np.nan, "", "segmentation.radius_unit = cells", np.nan],
        ),
    }


@pytest.mark.parametrize("name", ["codebook_size", "stages", "graph_radius", "revised_steps"])
def test_scores_and_differences_stand_beside_each_other(tables, name):
    table = tables[name]
    figure = getattr(plots, name)(table)
    for axis, columns in zip(
        figure.axes[-2:], (["mean", "low", "high"], ["diff", "diff_low", "diff_high"]), strict=True
    ):
        part = table[columns].dropna()
        np.testing.assert_allclose(dots(axis), np.column_stack([part.iloc[:, 0], part.index]))
        np.testing.assert_allclose(spans(axis), part.iloc[:, 1:])
        assert axis.get_xlabel()
    assert figure.get_suptitle()


def test_codebook_size_draws_usage_perplexity_and_reconstruction(tables):
    table = tables["codebook_size"]
    usage, perplexity, psnr = plots.codebook_size(table).axes[:3]
    np.testing.assert_allclose(dots(usage)[:, 0], 100 * table["usage"])
    np.testing.assert_allclose(dots(perplexity)[:, 0], table["perplexity"])
    np.testing.assert_allclose(spans(psnr), table[["psnr_low", "psnr_high"]])
    assert rows(usage) == ["K = 16", "K = 64"]


def test_rows_say_what_was_changed(tables):
    assert rows(plots.revised_steps(tables["revised_steps"]).axes[0]) == [
        "described",
        "upsampling:\nbilinear → guided",
        "graph_radius (+ radius_unit):\n0.05 → 2.6 ✗",
        "revised",
    ]
    assert rows(plots.graph_radius(tables["graph_radius"]).axes[0])[2] == "radius 2.6\n(20 neighbours)"


def test_options_keep_their_stage_where_two_have_one_name():
    names = ["described", "masked_gpt.encoder", "segmentation.encoder", "vqgan.pool"]
    assert ablations._short(names) == [*names[:3], "pool"]


def test_feature_quality_draws_each_head(scored):
    table = scored(features=["colour", "colour", "transformer", "transformer"], head=["linear probe", "graph"] * 2)
    table = table.rename(columns={"mean": "iou", "low": "iou_low", "high": "iou_high"})
    score, difference = plots.feature_quality(table).axes
    np.testing.assert_allclose(dots(score)[:, 0], table["iou"])
    np.testing.assert_allclose(spans(score), table[["iou_low", "iou_high"]])
    np.testing.assert_allclose(dots(difference)[:, 0], table["diff"].dropna())


@pytest.mark.parametrize("seeds", [1, 3])
def test_label_efficiency_draws_each_method_over_the_labels(scored, seeds):
    table = scored(method=["tokencutseg", "unet"] * 2, fraction=[0.05, 0.05, 1.0, 1.0], labels=[20, 20, 400, 400])
    table = table.assign(seeds=seeds, seed_low=table["mean"] - 0.01, seed_high=table["mean"] + 0.01)
    (axis,) = plots.label_efficiency(table).axes
    for line, (_, part) in zip(axis.lines, table.groupby("method", sort=False), strict=True):
        np.testing.assert_allclose(line.get_xydata(), part[["fraction", "mean"]])
    bars = [np.array(part.get_segments())[:, :, 1] for part in axis.collections if hasattr(part, "get_segments")]
    if seeds > 1:
        np.testing.assert_allclose(bars, [table[["seed_low", "seed_high"]]])
    assert axis.get_xscale() == "log" and (seeds == 1 or f"{seeds} seeds" in axis.get_ylabel())
    assert [label.get_text() for label in axis.get_xticklabels()] == ["5%\n20", "100%\n400"]


def test_deviations_stand_beside_each_other_by_option():
    cells = [
        ("segmentation.batch_size", "revised", 16, 1, -0.05),
        ("segmentation.loss_input", "released", "probabilities", "logits", 0.2),
        ("segmentation.loss_input", "revised", "logits", "probabilities", 0.01),
    ]
    table = pd.DataFrame(cells, columns=["switch", "recipe", "setting", "instead", "diff"]).assign(seeds=1)
    table = table.assign(diff_low=table["diff"] - 0.1, diff_high=table["diff"] + 0.1)
    figure = plots.deviations(table)
    revised, released = figure.axes
    assert rows(revised) == ["loss_input\nprobabilities ⇄ logits", "batch_size\n16 → 1"]
    np.testing.assert_allclose(dots(released), [[0.2, 0]])
    np.testing.assert_allclose(dots(revised), [[0.01, 0], [-0.05, 1]])
    np.testing.assert_allclose(spans(revised), [[-0.09, 0.11], [-0.15, 0.05]])
    assert released.get_xlim() == revised.get_xlim()


def test_efficiency_bars_start_at_zero():
    table = pd.DataFrame({"method": ["tokencutseg", "fpn"], "parameters": [1e6, 14e6], "flops": [3e8, 15e8]})
    table = table.assign(latency_seconds=[0.014, 0.031], peak_memory_bytes=[5e6, 11e6])
    axes = plots.efficiency(table).axes
    for axis, column, scale in zip(axes, table.columns[1:], (1e-6, 1e-9, 1e3, 1e-6), strict=True):
        np.testing.assert_allclose([bar.get_width() for bar in axis.patches], table[column] * scale)
        assert axis.get_xlim()[0] == 0


def test_baselines_draw_every_method_of_the_large_presets(scored):
    methods = ["tokencutseg", *configure("small").ablation.baselines, "mine"]
    cells = list(itertools.product(methods, ("micro_lesion", "per_image"), ("iou", "dice")))
    table = scored(**dict(zip(("method", "reduction", "measure"), zip(*cells, strict=True), strict=True)))
    table["initialisation"] = table["method"].map({"otsu": "none", "mine": "none"}).fillna("imagenet")
    table.loc[table["method"] == "tokencutseg", ["diff", "diff_low", "diff_high"]] = np.nan
    score, difference = plots.baselines(table, "dice").axes
    part = table[table["measure"] == "dice"]
    np.testing.assert_allclose(dots(score)[:, 0], part["mean"])
    np.testing.assert_allclose(spans(score), part[["low", "high"]])
    per_image = part[part["reduction"] == "per_image"].reset_index()
    np.testing.assert_allclose(dots(difference), np.column_stack([per_image["diff"], per_image.index])[1:])
    assert rows(score)[0] == "TokenCutSeg\n(imagenet)" and {"Otsu", "mine"} <= set(rows(score))
