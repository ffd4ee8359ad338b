"""The grids of notebook 05 on a study that trains in seconds."""

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from tokencutseg.bench.lines import synthetic_images

from tokencutseg.config import RECIPES, configure, known_keys
from tokencutseg.evaluation.statistics import holm
from tokencutseg.experiments import ablations as grids
from tokencutseg.experiments.study import Study
from tokencutseg.models.checkpoint import build
from tokencutseg.plots import ablations
from tokencutseg.training.modules import TokenCutSegModule

SMALL = {
    "data.synthetic_train": 16,
    "data.synthetic_validation": 6,
    "data.synthetic_test": 6,
    "data.synthetic_unlabelled": 8,
    "vqgan.perceptual": "none",
    "vqgan.images_per_epoch": 16,
    "vqgan.epochs": 2,
    "masked_gpt.images_per_epoch": 16,
    "masked_gpt.batch_size": 16,
    "segmentation.images_per_epoch": 16,
    "segmentation.batch_size": 16,
    "segmentation.learning_rate": 1e-2,
    "ablation.images_per_epoch": 16,
    "ablation.seeds": 2,
    "ablation.deviation_seeds": 2,
    "ablation.deviations": ["segmentation.loss_input", "segmentation.affinity"],
    "ablation.plain_unet": True,
}
SCORE = {"reduction", "measure", "n", "mean", "low", "high"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study.open("tiny", overrides=SMALL, results=str(tmp_path_factory.mktemp("results")))


@pytest.fixture(scope="module")
def deviations(study):
    return grids.deviations(study)


def assert_scores(table):
    assert set(table) >= SCORE
    assert set(table["reduction"]) == {"per_image"}
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    assert table["mean"].between(0, 1).all()


def assert_beside_first(table):
    np.testing.assert_allclose(table["change"][1:], table["mean"][1:] - table["mean"][0], atol=1e-12)
    assert table["change"][1:].between(table["change_low"][1:] - 1e-12, table["change_high"][1:] + 1e-12).all()
    assert np.isnan(table["change"][0])


@pytest.mark.parametrize(
    ("first", "cut"), [("vqgan", (2, 3, 5)), ("masked_gpt", (10, 3, 5)), ("segmentation", (10, 12, 5))]
)
def test_shortened_cuts_the_first_stage_and_those_after_it(first, cut):
    config = configure(
        overrides={
            "ablation.budget": 0.25,
            "ablation.images_per_epoch": 37,
            "vqgan.epochs": 10,
            "masked_gpt.epochs": 12,
            "segmentation.epochs": 20,
        }
    )
    short = grids.reduced_budget(config, first)
    assert (short.vqgan.epochs, short.masked_gpt.epochs, short.segmentation.epochs) == cut
    assert short.segmentation.images_per_epoch == config.ablation.images_per_epoch == 37
    restored = {f"{stage}.epochs": getattr(config, stage).epochs for stage in grids.CHAIN}
    assert config.segmentation.test_time_flips and not short.segmentation.test_time_flips
    assert (
        short.override(restored | {"segmentation.images_per_epoch": None, "segmentation.test_time_flips": True})
        == config
    )


def test_shortened_leaves_one_epoch():
    config = configure(overrides={"ablation.budget": 0.01})
    assert grids.reduced_budget(config).segmentation.epochs == 1


def test_codebook_size(study):
    table = grids.codebook_size(study)
    assert_scores(table)
    assert tuple(table["codebook_size"]) == study.config.ablation.codebook_sizes
    assert table["usage"].between(0, 1).all()
    assert (table["perplexity"] >= 1).all() and (
        table["perplexity"] <= table["usage"] * table["codebook_size"] + 1e-9
    ).all()
    assert table["psnr"].between(table["psnr_low"], table["psnr_high"]).all()
    assert_beside_first(table)


@pytest.mark.parametrize("recipe", RECIPES)
def test_stages_change_one_thing_per_row(recipe):
    def flat(config, pretrained):
        values = {f"{stage}.{key}": value for stage in grids.CHAIN for key, value in config.to_dict()[stage].items()}
        return values | {"stage 2 goes before": pretrained and config.masked_gpt.pretraining == "separate"}

    config = configure("tiny", recipe)
    cells = [flat(cell, pretrained) for _, cell, pretrained in grids.stage_cells(config)]
    changes = [{key for key in one if one[key] != two[key]} for one, two in itertools.pairwise(cells)]
    stage_2 = "segmentation.mlm_weight" if recipe == "released" else "stage 2 goes before"
    last = [
        {"segmentation.transformer_lr_scale"},
        {"segmentation.encoder"},
        {"masked_gpt.encoder"},
        {"segmentation.self_training_weight"},
    ]
    last = last if recipe == "revised" else []
    assert changes == [{"masked_gpt.n_layer"}, {stage_2}, {"segmentation.use_deepcut"}, *last]
    assert cells[-1] == flat(grids.reduced_budget(config), True)
    assert all(cell["segmentation.transformer_lr_scale"] == 1 for cell in cells[:4]), "with and without stage 2 alike"


def test_stages(study):
    table = grids.stages(study)
    assert_scores(table)
    assert list(table["stages"]) == [
        "tokenizer",
        "+ transformer",
        "+ masked pretraining",
        "+ graph module",
        "+ slower transformer",
        "+ fine-tuned encoder",
        "+ encoder in the pretraining",
        "+ self-training",
    ]
    np.testing.assert_allclose(table["change"][1:], table["mean"].diff()[1:], atol=1e-12)
    assert table["change"][1:].between(table["change_low"][1:] - 1e-12, table["change_high"][1:] + 1e-12).all()
    assert np.isnan(table["change"][0])


def test_graph_radius(study):
    table = grids.graph_radius(study)
    assert_scores(table)
    assert dict(zip(table["radius"], table["neighbours"], strict=True)) == {0.0: 0, 1.5: 8}
    assert_beside_first(table)


def test_a_grid_of_one_cell_can_be_drawn(study, tmp_path):
    one = Study(study.config.override({"ablation.graph_radii": "1.5"}), study.source, study.folder)
    table = grids.graph_radius(one)
    assert table["change"].isna().all()
    ablations.graph_radius(table).savefig(tmp_path / "figure.png", dpi=40)


def test_feature_quality(study, monkeypatch):
    table = grids.feature_quality(study)
    names = ["colour", "untrained CNN", "tokenizer", "transformer block 1", "transformer", "supervised U-Net"]
    assert study.config.masked_gpt.n_layer == 2
    assert list(zip(table["features"], table["head"], strict=True)) == [
        (features, head) for head in ("linear probe", "graph") for features in names
    ]
    supervised = table["features"] == "supervised U-Net"
    cell = grids.reduced_budget(study.config).segmentation
    seen = np.where(supervised, cell.epochs * cell.images_per_epoch, 0)
    assert (table["images_seen"] == seen).all()
    ours = table[table["features"] == "transformer"].set_index("head")
    assert ours["diff"].isna().all()
    others = table[table["features"] != "transformer"]
    np.testing.assert_allclose(others["diff"], ours["iou"].loc[others["head"]].to_numpy() - others["iou"])
    assert others["diff"].between(others["diff_low"], others["diff_high"]).all()
    assert (table["n"] == 6 * study.config.grid_size**2).all()
    assert table[["iou", "balanced_accuracy"]].stack().between(0, 1).all()
    assert table["iou"].between(table["iou_low"], table["iou_high"]).all()
    tokens = pd.read_csv(study.folder / "tables/feature_quality_tokens.csv").groupby(["head", "features"], sort=False)
    assert tokens["draw"].nunique().tolist() == [1, grids.UNTRAINED, 1, 1, 1, 1] * 2
    tp, fp, fn, tn = (
        tokens[name].sum().loc[list(zip(table["head"], table["features"], strict=True))].to_numpy()
        for name in ("tp", "fp", "fn", "tn")
    )
    np.testing.assert_allclose(table["iou"], tp / (tp + fp + fn))
    np.testing.assert_allclose(table["balanced_accuracy"], (tp / (tp + fn) + tn / (tn + fp)) / 2)
    torch.manual_seed(7)  # whatever numbers were drawn before
    pd.testing.assert_frame_equal(grids.feature_quality(study), table)
    monkeypatch.setattr(grids, "UNTRAINED", 1)
    one_draw = (grids.feature_quality(study)["iou"] != table["iou"]).tolist()
    assert one_draw == (table["features"] == "untrained CNN").tolist()


def test_features_that_have_seen_masks_are_said_to_have(study):
    own = Study(study.config.with_recipe("released"), study.source, study.folder)
    seen = grids.feature_quality(own).set_index("features")["images_seen"]
    assert (seen[["colour", "untrained CNN", "tokenizer"]] == 0).all()
    assert (seen[["transformer block 1", "transformer"]] == own.segmenter().metrics["images_seen"]).all()


def test_label_efficiency(study):
    table = grids.label_efficiency(study)
    assert_scores(table)
    assert list(zip(table["method"], table["fraction"], table["labels"], strict=True)) == [
        (method, *share) for share in ((0.25, 4), (1.0, 16)) for method in ("tokencutseg", "unet", "unet_plain")
    ]
    assert (table["seeds"] == 2).all() and (table["n"] == 6).all()
    assert (table["labels_seen"] == table["labels"]).all()
    theirs = study.baseline("unet", config=grids.reduced_budget(study.config)).metrics["pretrained_weights"]
    assert (
        table["weights"]
        == table["method"].map({"tokencutseg": "self-supervised", "unet": theirs, "unet_plain": theirs})
    ).all()
    np.testing.assert_allclose(table["mean"], (table["seed_low"] + table["seed_high"]) / 2)
    mine = table["method"] == "tokencutseg"
    ours, others = table[mine].set_index("fraction"), table[~mine]
    assert ours[["diff", "p", "p_holm"]].isna().all(axis=None)
    np.testing.assert_allclose(others["diff"], others["fraction"].map(ours["mean"]) - others["mean"], atol=1e-12)
    assert others["diff"].between(others["diff_low"], others["diff_high"]).all()
    np.testing.assert_allclose(others["p_holm"], holm(others["p"]))
    for column in ("n", "mean", "low", "high"):  # no synthetic image is in two sets
        assert (table[f"{column}_without"] == table[column]).all()


@pytest.mark.parametrize("left", [4, 0])
def test_label_efficiency_without_the_images_that_a_training_saw(study, monkeypatch, left):
    monkeypatch.setattr(study, "config", study.config.override({"ablation.plain_unet": False}))
    cell = grids.reduced_budget(study.config).override({"data.label_fraction": 1.0})
    records = pd.concat(
        study.records(study.baseline("unet", config=cell, seed=seed), study.source.primary, "test") for seed in range(2)
    )
    monkeypatch.setattr(grids, "seen_in_training", lambda *_: set(records["id"].iloc[left:6]))
    row = grids.label_efficiency(study).set_index(["method", "fraction"]).loc[("unet", 1.0)]
    kept = records[records["id"].isin(records["id"].iloc[:left])]
    assert (row["n"], row["n_without"]) == (6, left) and row["mean"] == pytest.approx(records["iou"].mean())
    assert row["mean_without"] == pytest.approx(kept["iou"].mean(), nan_ok=True)


def test_labels_that_a_short_training_does_not_come_to_see_are_not_counted_as_seen(study, monkeypatch):
    monkeypatch.setattr(
        study,
        "config",
        study.config.override({"ablation.images_per_epoch": 5, "ablation.seeds": 1, "ablation.plain_unet": False}),
    )
    table = grids.label_efficiency(study)
    assert list(zip(table["labels"], table["labels_seen"], strict=True)) == [(4, 4)] * 2 + [(16, 5)] * 2


def test_claims_rest_on_what_the_study_has_written(study):
    def reason():
        return grids.claims(study).set_index("claim").loc["label-efficient", "reason"]

    assert reason() == "this study has not written label_efficiency yet"
    assert not (study.folder / "tables/main_results.csv").exists(), "nothing is made that was not asked for"
    study.table("label_efficiency", grids.label_efficiency(study).replace({"fraction": {0.25: 0.1}}))
    assert reason().startswith("preset tiny is a demonstration; lead over the U-Net in lesion IoU: 10% of the labels")
    assert grids.claims(study).set_index("claim").loc["label-efficient", "complete"]


def test_the_plain_unet_is_another_training_of_the_same_network(study):
    config = grids.reduced_budget(study.config)
    runs = [study.baseline("unet", config=own) for own in (config, config.override(grids.PLAIN))]
    assert runs[0].folder != runs[1].folder
    assert len({run.metrics["images_seen"] for run in runs}) == 1
    assert all(grids.PLAIN[name] == runs[1].config.value(name) for name in grids.PLAIN)


def test_revised_steps_keep_what_validation_likes(study):
    table = grids.revised_steps(study)
    assert_scores(table)
    assert table["step"].tolist() == ["described", *study.config.ablation.steps, "revised"] and table["kept"][0]
    best = table["mean"][0]
    for row in table[1:].itertuples():
        assert row.change == pytest.approx(row.mean - best, abs=1e-12)
        assert row.change_low <= row.change <= row.change_high
        assert row.kept == (row.mean > best)
        best = max(best, row.mean)
        if row.step != "revised":
            assert (row.setting, row.instead) == tuple(RECIPES[name][row.step] for name in ("described", "revised"))
    # the first row is described but for the tokenizer, the last one revised
    revised = study.segmenter(config=grids.reduced_budget(study.config, "masked_gpt"))
    assert table["mean"].iloc[-1] == pytest.approx(grids.validation_score(study, revised)["mean"])


@pytest.mark.parametrize("preset", ["quick", "small"])
def test_every_step_is_one_in_which_the_recipes_differ(preset):
    for step in configure(preset).ablation.steps:
        assert RECIPES["described"][step] != RECIPES["revised"][step] or any(
            RECIPES["described"][name] != RECIPES["revised"][name] for name in grids.TOGETHER[step]
        )


def test_fractions_of_one_seed_are_nested(study):
    sets = [set(study.source.train(study.source.primary, fraction, 0).ids) for fraction in (0.25, 0.5, 1.0)]
    assert [len(ids) for ids in sets] == [4, 8, 16]
    assert sets[0] < sets[1] < sets[2]


def test_deviations_turn_one_switch_each_in_both_recipes(study, deviations):
    assert_scores(deviations.drop(columns=["low", "high"]).assign(low=0.0, high=1.0))
    assert deviations[["recipe", "switch", "setting", "instead"]].to_numpy().tolist() == [
        ["released", "segmentation.loss_input", "probabilities", "logits"],
        ["released", "segmentation.affinity", "position", "feature"],
        ["revised", "segmentation.loss_input", "logits", "probabilities"],
        ["revised", "segmentation.affinity", "position", "feature"],
    ]
    assert (deviations["seeds"] == 2).all() and (deviations["n"] == 6).all() and (deviations["also"] == "").all()
    np.testing.assert_allclose(deviations["difference"], deviations["mean"] - deviations["reference"], atol=1e-12)
    np.testing.assert_allclose(deviations["p_holm"], holm(deviations["p"]))
    # the cell without a change is the reduced_budget study, over the seeds
    runs = [
        study.segmenter(config=grids.reduced_budget(dataclasses.replace(study.config, seed=seed), "vqgan"))
        for seed in (0, 1)
    ]
    scores = [grids.validation_score(study, run)["mean"] for run in runs]
    assert deviations["reference"].iloc[-1] == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("switch", configure("full").ablation.deviations)
def test_every_switch_of_the_large_presets_can_be_turned(switch):
    for recipe, other in (("released", "revised"), ("revised", "released")):
        base = grids.reduced_budget(configure("small").with_recipe(recipe), "vqgan")
        assert base.recipe == recipe
        setting, changes = grids.deviation_changes(base, switch)
        stage, key = switch.split(".")
        turned = base.override(changes)
        assert getattr(getattr(turned, stage), key) == changes[switch] != setting
        wanted = RECIPES[other][switch]
        assert changes[switch] == (grids.ALTERNATIVES[switch] if wanted == setting else wanted)


@pytest.mark.parametrize(
    "switch", [name for name in configure("full").ablation.deviations if name.startswith("segmentation.")]
)
def test_a_fine_tuned_encoder_is_read_whatever_switch_is_turned(switch):
    """The mask's loss reaches each of its layers."""
    for recipe in ("released", "revised"):
        config = configure("tiny", recipe)
        config = config.override(grids.deviation_changes(config, switch)[1])
        module = TokenCutSegModule(config, build("segmentation", config))
        if module.model.upsampler is not None:
            torch.nn.init.ones_(module.model.upsampler.out.weight)  # which starts at zero
        images = synthetic_images(2, config.data.image_size)
        terms = module.losses(images.images.float() / 255, images.masks.long(), torch.Generator().manual_seed(0))
        sum(terms.values()).backward()
        tuned = module.model.encoder
        assert (tuned is not None) == (config.segmentation.encoder == "fine_tuned")
        assert tuned is None or all(p.grad is not None and p.grad.any() for p in tuned.encoder.parameters())


def test_the_users_settings_reach_both_recipes_but_not_their_switches():
    config = configure(overrides={"segmentation.loss_input": "probabilities", "vqgan.codebook_size": 32})
    for recipe in ("released", "revised"):
        base = config.with_recipe(recipe)
        assert base.vqgan.codebook_size == 32
        assert base.segmentation.loss_input == RECIPES[recipe]["segmentation.loss_input"]


def test_a_switch_takes_its_companions_along():
    _, changes = grids.deviation_changes(configure().with_recipe("released"), "masked_gpt.pretraining")
    assert changes == {
        "masked_gpt.pretraining": "separate",
        "segmentation.mlm_weight": 0.0,
        "segmentation.transformer_lr_scale": 0.1,
    }
    revised, described = configure(), configure(recipe="described")
    for switch in ("segmentation.encoder", "masked_gpt.inputs"):
        assert grids.switched(revised, switch, "described")["masked_gpt.encoder"] == "frozen"
    assert grids.switched(described, "masked_gpt.encoder", "revised") == {
        name: RECIPES["revised"][name]
        for name in (
            "masked_gpt.encoder",
            "masked_gpt.learning_rate",
            "masked_gpt.batch_size",
            "masked_gpt.inputs",
            "segmentation.encoder",
            "segmentation.encoder_lr_scale",
            "segmentation.upsampling",
        )
    }


@pytest.mark.parametrize("kept", list(itertools.product([True, False], repeat=3)))
def test_every_path_from_described_to_revised_can_be_gone(kept):
    """Whichever of the steps that depend on each other are kept."""
    depending = dict(zip(("masked_gpt.inputs", "segmentation.upsampling", "segmentation.encoder"), kept, strict=True))
    config = configure("small", "described")
    for step in config.ablation.steps:
        changes = grids.switched(config, step, "revised")
        tried = config.override(changes)
        assert tried.value(step) == RECIPES["revised"][step]
        config = tried if depending.get(step, True) else config


def test_efficiency(study):
    table = grids.efficiency(study)
    assert list(table["method"]) == ["tokencutseg", "unet"]
    assert (table.drop(columns="method") > 0).all(axis=None)


def test_baselines(study):
    table = grids.baselines(study)
    assert list(dict.fromkeys(table["method"])) == ["tokencutseg", "otsu", "unet"]
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    others = table[table["method"] != "tokencutseg"]
    ours = table[table["method"] == "tokencutseg"].set_index(["reduction", "measure"])["mean"]
    reference = ours.loc[list(zip(others["reduction"], others["measure"], strict=True))].to_numpy()
    np.testing.assert_allclose(others["diff"], reference - others["mean"], atol=1e-12)
    assert (others["diff_low"] <= others["diff_high"]).all()
    single = others[others["reduction"].str.startswith("per_image")]
    assert single["p_holm"].between(single["p"], np.minimum(2 * single["p"], 1) + 1e-12).all()
    assert others.drop(index=single.index)[["p", "p_holm"]].isna().all(axis=None), "pooled: no score per image"
    assert table.loc[table["method"] == "tokencutseg", ["diff", "p", "p_holm"]].isna().all(axis=None)
    facts = table.drop_duplicates("method").set_index("method")
    assert facts.loc["otsu", ["weights", "images_seen", "seconds"]].tolist() == ["none", 0, 0.0]
    assert facts["images_seen"]["tokencutseg"] == facts["images_seen"]["unet"] == 16
    assert facts["pretraining_seconds"]["tokencutseg"] == pytest.approx(
        study.tokenizer().metrics["seconds"] + study.transformer().metrics["seconds"]
    )


def test_recipe_table_is_the_recipes():
    table = grids.recipe_table()
    assert list(table.columns) == ["switch", "released", "described", "revised", "reason"]
    assert set(table["switch"]) <= set(known_keys())
    for recipe, values in RECIPES.items():
        assert dict(zip(table["switch"], table[recipe], strict=True)) == values
    reasons = table.set_index("switch")["reason"]
    assert reasons["vqgan.clamped_reconstruction"].startswith("Released: |x − x̂| is cut at 1")
    json.dumps(table.to_dict("records"))
