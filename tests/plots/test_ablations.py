"""Each figure says something, and draws the numbers that it was given."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tokencutseg.config import configure
from tokencutseg.models.tokencutseg import TokenCutSeg
from tokencutseg.plots import ablations
from tokencutseg.plots.style import BLUE, GREEN, GREY


def around(mean, width=0.02):
    return {"mean": mean, "low": mean - width, "high": mean + width}


def moved(change, width=0.02):
    return {"change": change, "change_low": change - width, "change_high": change + width}


TABLES = {
    "codebook_size": pd.DataFrame(
        [
            {
                "codebook_size": 16,
                "usage": 1.0,
                "perplexity": 12.0,
                "psnr": 24.0,
                "psnr_low": 23.5,
                "psnr_high": 24.4,
                **around(0.80),
                **moved(np.nan),
            },
            {
                "codebook_size": 64,
                "usage": 0.75,
                "perplexity": 40.0,
                "psnr": 26.0,
                "psnr_low": 25.5,
                "psnr_high": 26.6,
                **around(0.84),
                **moved(0.04),
            },
        ]
    ),
    "stages": pd.DataFrame(
        [
            {"stages": "tokenizer", "change": np.nan, "change_low": np.nan, "change_high": np.nan, **around(0.70)},
            {"stages": "+ transformer", "change": 0.05, "change_low": 0.02, "change_high": 0.07, **around(0.75)},
            {"stages": "+ graph module", "change": -0.01, "change_low": -0.03, "change_high": 0.01, **around(0.74)},
        ]
    ),
    "revised_steps": pd.DataFrame(
        [
            {"step": "described", "kept": True, "also": "", **around(0.70), **moved(np.nan)},
            {
                "step": "segmentation.upsampling",
                "setting": "bilinear",
                "instead": "guided",
                "kept": True,
                "also": "",
                **around(0.75),
                **moved(0.05),
            },
            {
                "step": "segmentation.graph_radius",
                "setting": 0.05,
                "instead": 2.6,
                "kept": False,
                "also": "segmentation.radius_unit = cells",
                **around(0.74),
                **moved(-0.01),
            },
            {"step": "revised", "kept": True, "also": "", **around(0.76), **moved(0.01)},
        ]
    ),
    "graph_radius": pd.DataFrame(
        [
            {"radius": 0.0, "neighbours": 0, **around(0.80), **moved(np.nan)},
            {"radius": 1.0, "neighbours": 4, **around(0.81), **moved(0.01)},
            {"radius": 2.6, "neighbours": 20, **around(0.78), **moved(-0.02)},
        ]
    ),
    "feature_quality": pd.DataFrame(
        [
            {"features": features, "head": head, "iou": iou, "iou_low": iou - 0.01, "iou_high": iou + 0.02}
            for features, head, iou in [
                ("colour", "linear probe", 0.60),
                ("colour", "graph", 0.65),
                ("transformer", "linear probe", 0.70),
                ("transformer", "graph", 0.75),
            ]
        ]
    ),
    "label_efficiency": pd.DataFrame(
        [
            {
                "method": method,
                "fraction": fraction,
                "labels": int(400 * fraction),
                "seeds": 2,
                "seed_low": mean - 0.01,
                "seed_high": mean + 0.01,
                **around(mean),
            }
            for fraction, ours, unet in [(0.05, 0.7, 0.6), (1.0, 0.9, 0.91)]
            for method, mean in (("tokencutseg", ours), ("unet", unet))
        ]
    ),
    "deviations": pd.DataFrame(
        [
            {
                "switch": "segmentation.loss_input",
                "recipe": "released",
                "setting": "probabilities",
                "instead": "logits",
                "difference": 0.2,
                "low": 0.1,
                "high": 0.3,
                "seeds": 1,
            },
            {
                "switch": "segmentation.loss_input",
                "recipe": "revised",
                "setting": "logits",
                "instead": "probabilities",
                "difference": 0.01,
                "low": -0.01,
                "high": 0.03,
                "seeds": 1,
            },
            {
                "switch": "segmentation.batch_size",
                "recipe": "revised",
                "setting": 16,
                "instead": 1,
                "difference": -0.05,
                "low": -0.07,
                "high": -0.02,
                "seeds": 1,
            },
        ]
    ),
    "efficiency": pd.DataFrame(
        [
            {
                "method": "tokencutseg",
                "parameters": 1e6,
                "flops": 3e8,
                "latency_seconds": 0.014,
                "peak_memory_bytes": 5e6,
            },
            {"method": "fpn", "parameters": 14e6, "flops": 15e8, "latency_seconds": 0.031, "peak_memory_bytes": 11e6},
        ]
    ),
    "baselines": pd.DataFrame(
        [
            {"method": method, "weights": weights, "reduction": reduction, "measure": "iou", **around(mean)}
            for method, weights, means in [("tokencutseg", "self-supervised", (0.9, 0.8)), ("otsu", "none", (0.7, 0.6))]
            for reduction, mean in zip(("micro_lesion", "per_image"), means, strict=True)
        ]
    ),
}


@pytest.fixture(scope="module")
def figures():
    return {name: getattr(ablations, name)(table) for name, table in TABLES.items()}


def title(figure):
    """In one line, however it is wrapped."""
    return " ".join(figure.get_suptitle().split())


def drawn(axis, label=None):
    """The (x, y) of each line with markers."""
    return [
        line.get_xydata() for line in axis.lines if line.get_marker() != "None" and label in (None, line.get_label())
    ]


def heights(collection):
    """The two ends of each interval: (rows, 2)."""
    ends = np.array(collection.get_segments())  # (rows, ends, xy)
    upright = np.allclose(ends[:, 0, 0], ends[:, 1, 0])
    return ends[:, :, 1 if upright else 0]


@pytest.mark.parametrize("name", TABLES)
def test_has_a_title_and_labelled_axes_and_can_be_drawn(figures, name, tmp_path):
    figure = figures[name]
    assert isinstance(figure, Figure)
    assert title(figure)
    assert all(axis.get_xlabel() for axis in figure.axes)
    figure.savefig(tmp_path / "figure.png", dpi=40)


def test_codebook_size_draws_four_measures(figures):
    table = TABLES["codebook_size"]
    for axis, column in zip(figures["codebook_size"].axes, ("usage", "perplexity", "psnr", "mean"), strict=True):
        np.testing.assert_allclose(drawn(axis)[0], table[["codebook_size", column]])
    for axis, columns in zip(
        figures["codebook_size"].axes[2:], (["psnr_low", "psnr_high"], ["low", "high"]), strict=True
    ):
        np.testing.assert_allclose(heights(axis.collections[0]), table[columns])
    assert title(figures["codebook_size"]) == (
        "K = 64 segments best: +0.040 lesion IoU to K = 16; 75% of its codes are used"
    )


@pytest.mark.parametrize(("name", "words"), [("stages", "+ transformer"), ("revised_steps", "1 of 2 steps kept")])
def test_ladders_draw_scores_and_changes(figures, name, words):
    table, (score, change) = TABLES[name], figures[name].axes
    np.testing.assert_allclose(score.collections[1].get_offsets()[:, 0], table["mean"])
    np.testing.assert_allclose(change.collections[1].get_offsets()[:, 0], table["change"][1:])
    np.testing.assert_allclose(heights(change.collections[0]), table[["change_low", "change_high"]][1:])
    assert words in title(figures[name])


def test_steps_name_what_came_along(figures):
    score, _ = figures["revised_steps"].axes
    assert [label.get_text() for label in score.get_yticklabels()] == [
        "described",
        "upsampling:\nbilinear → guided",
        "graph_radius (+ radius_unit):\n0.05 → 2.6 ✗",
        "revised",
    ]


def test_stages_say_when_even_the_largest_change_may_be_none(figures):
    assert title(figures["stages"]).endswith("+0.050 lesion IoU")
    unclear = TABLES["stages"].assign(change_low=-0.1)
    assert title(ablations.stages(unclear)).endswith("+0.050 lesion IoU, an interval that holds 0")


def test_graph_radius_draws_scores_neighbours_and_changes(figures):
    (score, change), table = figures["graph_radius"].axes, TABLES["graph_radius"]
    np.testing.assert_allclose(drawn(score)[0], table[["radius", "mean"]])
    np.testing.assert_allclose(drawn(change)[0], table[["radius", "change"]][1:])
    np.testing.assert_allclose(heights(change.collections[0]), table[["change_low", "change_high"]][1:])
    assert [label.get_text() for label in score.get_xticklabels()] == ["0\n0", "1\n4", "2.6\n20"]


@pytest.mark.parametrize(
    ("means", "half", "words"),
    [
        ((0.80, 0.81, 0.78), 0.02, "Radius 1 scores best: +0.010 lesion IoU to radius 0, an interval that holds 0"),
        ((0.80, 0.81, 0.78), 0.005, "Radius 1 scores best: +0.010 lesion IoU to radius 0"),
        ((0.80, 0.79, 0.78), 0.005, "Radius 0 scores best (lesion IoU 0.800), 2 of 2 others clearly below (paired)"),
        ((0.80, 0.79, 0.78), 0.015, "Radius 0 scores best (lesion IoU 0.800), 1 of 2 others clearly below (paired)"),
    ],
)
def test_a_grid_says_how_far_its_best_is_ahead_of_its_first(means, half, words):
    table = TABLES["graph_radius"].assign(mean=means)
    change = (table["mean"] - means[0]).where(table["radius"] > 0)
    table = table.assign(change=change, change_low=change - half, change_high=change + half)
    assert title(ablations.graph_radius(table)) == words


def test_switches_keep_their_stage_where_two_have_one_name():
    assert ablations._short(["described", "masked_gpt.encoder", "segmentation.encoder", "vqgan.pool"]) == [
        "described",
        "masked_gpt.encoder",
        "segmentation.encoder",
        "pool",
    ]


@pytest.mark.parametrize("head", ["linear probe", "graph"])
def test_feature_quality_draws_each_head(figures, head):
    table = TABLES["feature_quality"]
    np.testing.assert_allclose(
        drawn(figures["feature_quality"].axes[0], head)[0][:, 0], table[table["head"] == head]["iou"]
    )


@pytest.mark.parametrize("method", ["tokencutseg", "unet"])
def test_label_efficiency_draws_each_method(figures, method):
    table, axis = TABLES["label_efficiency"], figures["label_efficiency"].axes[0]
    own = table[table["method"] == method]
    np.testing.assert_allclose(drawn(axis, method)[0], own[["fraction", "mean"]])
    assert axis.get_xscale() == "log"
    assert "2 seeds" in axis.get_ylabel()


def test_deviations_stand_beside_each_other_by_switch(figures):
    released, revised = figures["deviations"].axes
    assert [label.get_text() for label in released.get_yticklabels()] == [
        "loss_input\nprobabilities ⇄ logits",
        "batch_size\n16 → 1",
    ]
    np.testing.assert_allclose(released.collections[1].get_offsets(), [[0.2, 1]])
    np.testing.assert_allclose(revised.collections[1].get_offsets(), [[0.01, 1], [-0.05, 0]])
    np.testing.assert_allclose(heights(revised.collections[0]), [[-0.01, 0.03], [-0.07, -0.02]])
    colours = [to_hex(colour).upper() for colour in revised.collections[1].get_facecolors()]
    assert colours == [GREY, GREEN], "grey where the interval holds zero, else the recipe's own colour"
    assert released.get_xlim() == revised.get_xlim()
    assert released.get_title() == "released, one switch corrected"
    assert title(figures["deviations"]).startswith("2 of 3 turned switches move the score")
    assert ablations._clear([0.1, -0.2, -0.1], [0.2, -0.1, 0.1], BLUE) == [BLUE, BLUE, GREY]


def test_efficiency_bars_start_at_zero(figures):
    table = TABLES["efficiency"]
    for axis, values in zip(
        figures["efficiency"].axes,
        (
            table["parameters"] / 1e6,
            table["flops"] / 1e9,
            1e3 * table["latency_seconds"],
            table["peak_memory_bytes"] / 1e6,
        ),
        strict=True,
    ):
        np.testing.assert_allclose([bar.get_width() for bar in axis.patches], values)
        assert axis.get_xlim()[0] == 0


def test_baselines_draws_each_method(figures):
    table, axis = TABLES["baselines"], figures["baselines"].axes[0]
    np.testing.assert_allclose(
        drawn(axis, "tokencutseg (self-supervised)")[0][:, 0], table[table["method"] == "tokencutseg"]["mean"]
    )
    np.testing.assert_allclose(drawn(axis, "otsu")[0][:, 0], table[table["method"] == "otsu"]["mean"])
    assert "0.800 to 0.900" in title(figures["baselines"])


def test_pipeline_shows_what_the_model_computes():
    torch.manual_seed(0)
    model, image = TokenCutSeg(configure("tiny")).eval(), torch.rand(3, 32, 32)
    figure = ablations.pipeline(model, image)
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    with torch.no_grad():
        out = model(image[None])
    assert len(shown) == 6
    np.testing.assert_array_equal(shown[1].ravel(), out.tokens[0])
    hidden = np.ma.getmaskarray(shown[2]).ravel()
    assert 0 < hidden.sum() < hidden.size
    np.testing.assert_array_equal(shown[2].ravel()[~hidden], out.tokens[0].numpy()[~hidden])
    np.testing.assert_allclose(shown[4].ravel(), out.assignments[0, :, 1])
    assert "32 × 32 pixels become 16 words" in title(figure)
    assert all(axis.get_title() for axis in figure.axes if axis.images)


def test_principal_colours_follow_the_main_axis():
    """Features on a line: the first channel is the place on it (up to its direction), the others carry nothing."""
    place = torch.linspace(0, 1, 50)
    colours = ablations.principal_colours(place[:, None] * torch.tensor([3.0, 4.0, 0.0, 0.0]))
    assert colours.shape == (50, 3)
    assert colours.min() >= 0 and colours.max() <= 1
    assert abs(np.corrcoef(place, colours[:, 0])[0, 1]) > 0.99


def test_every_baseline_of_the_large_presets_finds_its_place():
    methods = ["tokencutseg", *configure("small").ablation.baselines, "mine"]
    table = pd.concat(
        [TABLES["baselines"][TABLES["baselines"]["method"] == "otsu"].assign(method=method) for method in methods]
    )
    rows = {round(y) for xy in drawn(ablations.baselines(table).axes[0]) for y in xy[:, 1]}
    assert rows == {0, 1}, "no method may stand in another reduction's row"
    costs = pd.concat([TABLES["efficiency"].iloc[[0]].assign(method=method) for method in methods])
    bars = ablations.efficiency(costs).axes[0].patches
    assert len({bar.get_facecolor() for bar in bars}) == len(methods)
