"""The declarations of notebook 05, and the one function behind their tables."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata, wilcoxon

from tokencutseg.config import RECIPES, ConfigError, configure, options
from tokencutseg.data.synthetic import generate
from tokencutseg.evaluation.statistics import holm, paired_difference
from tokencutseg.experiments import ablations, features
from tokencutseg.experiments.ablations import ABLATIONS, Ablation, Row, changed, reduced_budget, run_ablation, vary
from tokencutseg.experiments.pipeline import OURS
from tokencutseg.experiments.runs import Run
from tokencutseg.experiments.study import Study
from tokencutseg.models.checkpoint import build
from tokencutseg.training.modules import TokenCutSegModule

IMAGES = {"train": 16, "validation": 6, "test": 6, "unlabelled": 8}
SMALL = {f"data.synthetic_{name}": n for name, n in IMAGES.items()} | {"vqgan.perceptual": "none", "vqgan.epochs": 2}
SMALL |= {f"{stage}.images_per_epoch": 16 for stage in ablations.CHAIN} | {"ablation.images_per_epoch": 12}
SMALL |= {"masked_gpt.batch_size": 16, "segmentation.batch_size": 16, "segmentation.learning_rate": 1e-2}
SMALL |= {"ablation.seeds": 2, "ablation.label_methods": ["released", "unet", "unet_self_training"]}
SCORE = ["reduction", "measure", "n", "seeds", "mean", "low", "high", "diff", "diff_low", "diff_high", "p", "p_holm"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study.open("tiny", overrides=SMALL, results=tmp_path_factory.mktemp("results"))


# ---- references, on records by hand ---------------------------------------------------------------------------------

IOU = {name: np.random.default_rng(i).random((2, 9)) for i, name in enumerate("abcdef")}
"""Lesion IoU of nine images under two seeds, by the name of a row."""


@pytest.fixture
def table(monkeypatch):
    """The table of rows a to f in two groups of three, by declaration."""
    monkeypatch.setattr(ablations, "train_missing", lambda *_: None)

    def records(run, *_):
        row, seed = run.id.split("/")
        return pd.DataFrame({"id": list("123456789"), "iou": IOU[row][int(seed)]})

    stub = SimpleNamespace(
        config=configure("tiny", overrides={"ablation.seeds": 2}),
        source=SimpleNamespace(primary="site_a"),
        method=lambda name, config, seed, **_: (config.recipe, seed),
        run=lambda training: SimpleNamespace(id="/".join(map(str, training))),
        records=records,
    )

    def of(reference, group):
        configs = {name: dataclasses.replace(stub.config, recipe=name) for name in IOU}
        rows = [Row({"row": name, "half": i // 3}, configs[name]) for i, name in enumerate(IOU)]
        declared = Ablation(lambda _: rows, reference, group, seeds="ablation.seeds")
        monkeypatch.setitem(ABLATIONS, "by hand", declared)
        return run_ablation(stub, "by hand")

    return of


RULES = [("first", None, "-aaaaa"), ("first", "half", "-aa-dd"), ("previous", None, "-abcde")]
RULES += [("proposed", "half", "-aa-dd"), ("best", None, None)]


@pytest.mark.parametrize(("reference", "group", "expected"), RULES)
def test_reference_rules(table, reference, group, expected):
    found, p = table(reference, group), []
    if expected is None:  # the highest mean above it
        means = [IOU[name].mean() for name in IOU]
        expected = "-" + "".join(list(IOU)[int(np.argmax(means[:i]))] for i in range(1, 6))
        assert found["kept"].tolist() == [True] + [means[i] > max(means[:i]) for i in range(1, 6)]
    for row, other in zip(found.itertuples(), expected, strict=True):
        assert row.mean == pytest.approx(IOU[row.row].mean()) and row.n == 9 and row.seeds == 2
        assert row.low < row.mean < row.high and row.runs == f"{row.row}/0 {row.row}/1"
        if other == "-":
            assert np.isnan([row.diff, row.diff_low, row.diff_high, row.p, row.p_holm]).all()
            continue
        difference = (IOU[row.row] - IOU[other]) * (-1 if reference == "proposed" else 1)
        assert row.diff == pytest.approx(difference.mean()) and row.diff_low < row.diff < row.diff_high
        changes = difference.mean(0)
        agree = (np.sign(changes) * rankdata(abs(changes))).sum() * changes.mean() > 0
        assert row.p == pytest.approx(wilcoxon(changes, method="exact").pvalue if agree else 1)
        p.append(row.p)
    np.testing.assert_allclose(found["p_holm"].dropna(), holm(p))


# ---- what rows are made of ------------------------------------------------------------------------------------------


EPOCHS = {"vqgan": (2, 3, 5), "masked_gpt": (10, 3, 5), "segmentation": (10, 12, 5)}


@pytest.mark.parametrize(("first", "epochs"), EPOCHS.items())
def test_reduced_budget(first, epochs):
    full = {"vqgan.epochs": 10, "masked_gpt.epochs": 12, "segmentation.epochs": 20}
    config = configure(overrides=full | {"ablation.budget": 0.25, "ablation.images_per_epoch": 37})
    short = reduced_budget(config, first)
    assert (short.vqgan.epochs, short.masked_gpt.epochs, short.segmentation.epochs) == epochs
    assert short.segmentation.images_per_epoch == 37 and not short.segmentation.test_time_flips
    own = config.segmentation
    restored = full | {"segmentation.images_per_epoch": own.images_per_epoch, "segmentation.test_time_flips": True}
    assert short.override(restored) == config
    assert reduced_budget(config.override({"ablation.budget": 0.01})).segmentation.epochs == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_component_rows_change_one_thing_each(recipe):
    def flat(row):
        values = {f"{stage}.{key}": v for stage in ablations.CHAIN for key, v in row.config.to_dict()[stage].items()}
        return values | {"stage 2": row.pretrained and row.config.masked_gpt.pretraining == "separate"}

    config = configure("tiny", recipe)
    rows = [flat(row) for row in ablations.component_rows(SimpleNamespace(config=config))]
    changes = [{key for key in one if one[key] != two[key]} for one, two in itertools.pairwise(rows)]
    last = [{f"segmentation.{key}"} for key in ("upsampling", "frozen_transformer", "self_training_weight")]
    pretraining = "segmentation.mlm_weight" if recipe == "released" else "stage 2"
    expected = [{"masked_gpt.n_layer"}, {pretraining}, {"segmentation.use_deepcut"}]
    assert changes == expected + (last if recipe == "revised" else [])
    assert rows[-1] == flat(Row({}, reduced_budget(config)))


def deviations(preset="tiny", **settings):
    """(base, row) of every deviation of a configuration."""
    base = None
    for row in ablations.deviation_rows(SimpleNamespace(config=configure(preset, overrides=settings))):
        base = base if row.shown else row.config
        if row.shown:
            yield base, row


def test_deviations_change_one_option_each():
    rows = list(deviations("full"))
    assert len(rows) == 2 * len(configure("full").ablation.deviations)
    for base, row in rows:
        option, other = row.labels["option"], {"released": "revised", "revised": "released"}[base.recipe]
        wanted, new = RECIPES[other][option], row.config.value(option)
        assert row.labels["setting"] == base.value(option) != new == row.labels["instead"]
        assert new == (ablations.ALTERNATIVES[option] if wanted == base.value(option) else wanted)
        changes = {name for name in options() if base.value(name) != row.config.value(name)}
        also = {part.split(" = ")[0] for part in row.labels["also"].split(", ") if part}
        assert changes == {option} | also


@pytest.mark.parametrize("option", [one for one in configure("full").ablation.deviations if one[:3] == "seg"])
def test_encoder_learns(option):
    """The mask's loss reaches its layers."""
    images, masks = (torch.from_numpy(array) for array in generate("site_a", 8, 32, seed=0))
    torch.manual_seed(0)
    for _, row in deviations(**{"ablation.deviations": [option]}):
        module = TokenCutSegModule(row.config, build("segmentation", row.config))
        terms = module.losses(images.float() / 255, masks.long(), torch.Generator().manual_seed(0))
        sum(terms.values()).backward()
        encoder = module.model.encoder
        assert (encoder is not None) == (row.config.segmentation.upsampling == "unet")
        assert encoder is None or all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_coupled_options_change_together():
    row = changed(configure().with_recipe("released"), "masked_gpt.pretraining", "revised", {})
    also = ("mlm_weight = 0.0", "transformer_lr_scale = 0.1", "frozen_transformer = True")
    assert row.labels["also"] == ", ".join(f"segmentation.{one}" for one in also)
    joint = changed(configure(), "masked_gpt.pretraining", "released", {}).config
    assert not joint.segmentation.frozen_transformer, "what is trained along"
    with pytest.raises(ConfigError, match=r"vqgan.n_stages is 2 in both"):
        changed(configure(recipe="released"), "vqgan.n_stages", "described", {})


@pytest.mark.parametrize("kept", itertools.product([True, False], repeat=2))
def test_steps_lead_to_revised(kept):
    depending = dict(zip(("masked_gpt.inputs", "segmentation.upsampling"), kept, strict=True))
    config = configure("small")
    first, *steps, last = ablations.step_rows(SimpleNamespace(config=config))
    best = first.config
    for step, option in zip(steps, config.ablation.steps, strict=True):
        row = step(best)
        assert row.config.value(option) == RECIPES["revised"][option] and row.config != best
        best = row.config if depending.get(option, True) else best
    assert last.config == reduced_budget(config, "masked_gpt")


# ---- trained tables -------------------------------------------------------------------------------------------------


def test_a_new_ablation_is_one_entry(study, monkeypatch):
    monkeypatch.setitem(ABLATIONS, "mask_ratio", vary("mask_ratio", "masked_gpt.mask_ratio", (0.3, 0.6)))
    table = run_ablation(study, "mask_ratio")
    assert list(table) == ["mask_ratio", *SCORE, "runs"] and table["mask_ratio"].tolist() == [0.3, 0.6]
    short = reduced_budget(study.config, "masked_gpt")
    runs = [study.segmenter(config=short.override({"masked_gpt.mask_ratio": ratio})) for ratio in (0.3, 0.6)]
    assert table["runs"].tolist() == [run.id for run in runs]
    means = [study.records(run, "site_a", "validation")["iou"].mean() for run in runs]
    np.testing.assert_allclose(table["mean"], means)
    assert table["diff"][1] == pytest.approx(means[1] - means[0], abs=1e-12)
    assert runs[0].metadata["dependencies"]["tokenizer"] == study.tokenizer().id, "that of the main study"


COLUMNS = {
    "codebook_size": "codebook_size usage perplexity psnr psnr_low psnr_high ssim",
    "stages": "stages",
    "graph_radius": "radius neighbours",
    "deviations": "option recipe setting instead also",
    "revised_steps": "step setting instead also kept",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COLUMNS)
def test_tables_of_validation_scores(study, name):
    table = run_ablation(study, name)
    assert list(table) == [*COLUMNS[name].split(), *SCORE, "runs"] and (table["n"] == 6).all()
    assert (table["low"] <= table["mean"]).all() and (table["mean"] <= table["high"]).all()
    for runs in table["runs"].str.split():
        assert all((study.store.folder / run / "metrics.json").is_file() for run in runs)
    if name == "codebook_size":
        assert (table["perplexity"] <= table["usage"] * table["codebook_size"] + 1e-9).all()
        assert table["psnr"].between(table["psnr_low"], table["psnr_high"]).all()
    if name == "graph_radius":
        assert dict(zip(table["radius"], table["neighbours"], strict=True)) == {0.0: 0, 1.5: 8}


@pytest.mark.slow
def test_label_efficiency(study, monkeypatch):
    every_test = run_ablation(study, "label_efficiency")
    table, elsewhere = (every_test[every_test["test"] == test].reset_index(drop=True) for test in ("site_a", "site_b"))
    assert len(every_test) == len(table) + len(elsewhere) and (elsewhere["runs"] == table["runs"]).all()
    scores = [study.records(Run(study.store.folder / id), "site_b", "test") for id in elsewhere["runs"][0].split()]
    assert elsewhere["mean"][0] == pytest.approx(pd.concat(scores)["iou"].mean())
    for part in (table, elsewhere):
        assert holm(part["p"]) == pytest.approx(part["p_holm"].to_numpy(), nan_ok=True)
    methods = [OURS, "released", "unet", "unet_self_training"]
    found = list(table[["fraction", "labels", "method"]].itertuples(index=False, name=None))
    assert found == [(*share, method) for share in ((0.25, 4), (1.0, 16)) for method in methods]
    assert (table["labels_seen"] == table["labels"].clip(upper=12)).all(), "as many as the training draws"
    np.testing.assert_allclose(table["mean"], (table["seed_low"] + table["seed_high"]) / 2)
    assert (table["seeds"] == np.where(table["method"] == "released", 1, 2)).all()
    assert (table["runs"].str.split().str.len() == table["seeds"]).all()
    assert table["runs"].str.split().explode().is_unique
    for column in ("n", "mean", "low", "high"):  # no synthetic image is in two sets
        assert (table[f"{column}_without"] == table[column]).all()
    whole = table[table["fraction"] == 1].set_index("method")
    runs, row = [whole.loc[name, "runs"].split() for name in (OURS, "unet")], whole.loc["unet"]
    ours, unet = ([study.records(Run(study.store.folder / id), "site_a", "test") for id in ids] for ids in runs)
    kept, every = list(ours[0]["id"][:4]), [pd.concat([a.assign(seed=0), b.assign(seed=1)]) for a, b in (ours, unet)]
    result = paired_difference(*every, "per_image", "iou", draws=200)
    assert (row["diff"], row["diff_low"], row["diff_high"]) == (result.difference, result.low, result.high)
    monkeypatch.setattr(ablations, "_seen", lambda *_: set(ours[0]["id"][4:]))
    again = run_ablation(study, "label_efficiency")
    without = again.query("method == 'unet' and fraction == 1 and test == 'site_a'").iloc[0]
    assert without["n_without"] == 4
    assert without["mean_without"] == pytest.approx(every[1][every[1]["id"].isin(kept)]["iou"].mean())


@pytest.mark.parametrize(
    "steps", ["vqgan.perceptual", "segmentation.affinity", "masked_gpt.mask_pattern,masked_gpt.mask_ratio"]
)
def test_a_step_that_changes_nothing_is_refused_before_any_training(steps):
    with pytest.raises(ConfigError, match=steps.split(",")[-1]):
        ablations.step_rows(SimpleNamespace(config=configure("tiny", overrides={"ablation.steps": steps})))


def test_trained_once_is_of_methods_and_shares_alone(study, monkeypatch):
    plan = {"evaluation.trained_once": "released", "ablation.deviation_seeds": 2}
    monkeypatch.setattr(study, "config", study.config.override(plan))
    ablation = ABLATIONS["deviations"]
    assert {len(ablation.trainings(study, row)) for row in ablation.rows(study)} == {2}


def test_external_tests_are_those_of_the_primary_training_set_whatever_the_main_results_have(study, monkeypatch):
    monkeypatch.setattr(study, "config", study.config.override({"evaluation.train_sets": "site_b"}))
    assert ABLATIONS["label_efficiency"].scored(study) == (("site_a", "test"), ("site_b", "test"))


def test_a_share_of_labels_can_be_drawn_once(study, monkeypatch):
    monkeypatch.setattr(study, "config", study.config.override({"evaluation.trained_once": "released,0.25"}))
    ablation = ABLATIONS["label_efficiency"]
    for row in ablation.rows(study):
        once = row.labels["method"] == "released" or row.labels["fraction"] == 0.25
        assert len(ablation.trainings(study, row)) == (1 if once else study.config.ablation.seeds)


@pytest.mark.slow
def test_baselines(study):
    table = run_ablation(study, "baselines")
    assert list(dict.fromkeys(table["method"])) == [OURS, "otsu", "unet"]
    keys = ["test", "reduction", "measure"]
    others = table[table["method"] != OURS]
    reference = others.merge(table[table["method"] == OURS], "left", keys)["mean_y"].to_numpy()
    assert set(table["test"]) == {"site_a", "site_b"}
    np.testing.assert_allclose(others["diff"], reference - others["mean"], atol=1e-12)
    per_image = others["reduction"].str.startswith("per_image")
    assert others.loc[~per_image, "p"].isna().all(), "micro: no score per image"
    for _, rows in others[per_image].groupby(keys):
        np.testing.assert_allclose(rows["p_holm"], holm(rows["p"]))
    facts = table.drop_duplicates("method").set_index("method")
    assert facts.loc["otsu", ["initialisation", "images_seen", "seconds"]].tolist() == ["none", 0, 0.0]
    assert facts["images_seen"][OURS] == facts["images_seen"]["unet"] == 12
    before = study.tokenizer().metrics["seconds"] + study.transformer().metrics["seconds"]
    assert facts["pretraining_seconds"].tolist() == [pytest.approx(before), 0, 0]


@pytest.mark.slow
def test_feature_quality(study, monkeypatch):
    tokens = features.feature_quality_tokens(study)
    table = features.feature_quality(study, tokens)
    names = ["colour", "untrained CNN", "ImageNet CNN", "tokenizer", "transformer block 1", "transformer"]
    names.append("supervised U-Net")
    assert table["head"].tolist() == ["linear probe"] * 7 + ["graph"] * 7 and table["features"].tolist() == names * 2
    masks = reduced_budget(study.config).segmentation
    supervised = table["features"] == "supervised U-Net"
    assert (table["images_seen"] == np.where(supervised, masks.epochs * masks.images_per_epoch, 0)).all()
    own = table[table["features"] == "transformer"].set_index("head")
    others = table[table["features"] != "transformer"]
    assert own["diff"].isna().all() and others["diff"].between(others["diff_low"], others["diff_high"]).all()
    np.testing.assert_allclose(others["diff"], own["iou"].loc[others["head"]].to_numpy() - others["iou"])
    assert (table["n"] == 6 * study.config.grid_size**2).all()
    groups = tokens.groupby(["head", "features"], sort=False)
    assert groups["draw"].nunique().tolist() == [1, features.UNTRAINED, 1, 1, 1, 1, 1] * 2
    tp, fp, fn, tn = (groups[name].sum().to_numpy() for name in ("tp", "fp", "fn", "tn"))
    np.testing.assert_allclose(table["iou"], tp / (tp + fp + fn))
    np.testing.assert_allclose(table["balanced_accuracy"], (tp / (tp + fn) + tn / (tn + fp)) / 2)
    runs = ["", "", "", study.tokenizer().id, *[study.transformer().id] * 2]
    assert groups["runs"].agg(set).tolist()[:6] == [{run} for run in runs]
    joint = Study(study.config.with_recipe("released"), study.source, study.results).segmenter()
    seen = features.feature_quality(study, tokens.replace({"runs": {study.transformer().id: joint.id}}))
    seen = seen.set_index("features")["images_seen"]
    assert (seen[names[:4]] == 0).all() and (seen[names[4:6]] == joint.metrics["images_seen"]).all()
    torch.manual_seed(7)  # whatever numbers were drawn before
    monkeypatch.setattr(features, "UNTRAINED", 1)
    differs = (features.feature_quality(study)["iou"] != table["iou"]).tolist()
    assert differs == (table["features"] == "untrained CNN").tolist()
