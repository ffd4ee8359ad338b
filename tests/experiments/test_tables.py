"""The tables of notebooks 01 to 04 of one tiny study, trained once."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tokencutseg.data.audit import seen_in_training
from tokencutseg.data.image_set import ImageSet
from tokencutseg.data.images import DataError
from tokencutseg.data.source import DataSource
from tokencutseg.evaluation.inspection import inpaint, sample_token_masks
from tokencutseg.evaluation.statistics import paired_difference
from tokencutseg.experiments import tables
from tokencutseg.experiments.claims import PUBLISHED
from tokencutseg.experiments.study import Study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    short = {"vqgan.epochs": 1, "masked_gpt.epochs": 1, "vqgan.perceptual": "none"}
    short |= {f"{stage}.images_per_epoch": 16 for stage in ("vqgan", "masked_gpt", "segmentation")}
    return Study.open("tiny", results=tmp_path_factory.mktemp("results"), overrides=short)


@pytest.fixture(scope="module")
def records(study):
    return tables.main_records(study)


@pytest.fixture(scope="module")
def results(study):
    return tables.main_results(study)


def test_tables_of_the_pretraining_name_their_run(study):
    quality = tables.reconstruction(study)
    assert set(quality["runs"]) == {study.tokenizer().id} and set(quality["measure"]) == {"l1", "psnr", "ssim", "lpips"}
    assert quality["dataset"].unique().tolist() == ["site_a", "site_b"]
    assert (quality["low"] <= quality["mean"]).all() and (quality["mean"] <= quality["high"]).all()
    vqgan, x = study.tokenizer().model(), study.source.load("site_b", "test").images / 255
    error = (vqgan.detokenize(vqgan.tokenize(x)) - x).abs().mean()
    assert quality.set_index(["dataset", "measure"]).loc[("site_b", "l1"), "mean"] == pytest.approx(error.item())
    usage = tables.codebook_usage(study)
    assert usage["share"].sum() == pytest.approx(1) and set(usage["runs"]) == {study.tokenizer().id}
    for table in (tables.masked_prediction(study), tables.linear_probes(study)):
        assert set(table["runs"]) == {study.transformer().id}


def test_linear_probes_learn_from_training_images_and_are_scored_on_others(study):
    train, test = (study.source.load("site_a", split) for split in ("train", "test"))
    x, other = ((one.images / 255).unflatten(2, (4, 8)).unflatten(4, (4, 8)).mean((3, 5)) for one in (train, test))
    x, other = (colour.movedim(1, -1).flatten(0, 2) for colour in (x, other))
    y, truth = (
        (one.masks.double().unflatten(1, (4, 8)).unflatten(3, (4, 8)).mean((2, 4)) > 0.5).flatten()
        for one in (train, test)
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced")).fit(x, y)
    row = tables.linear_probes(study).set_index("features").loc["colour"]
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, probe.predict(other)), abs=0.01)
    assert row["auc"] == pytest.approx(roc_auc_score(truth, probe.decision_function(other)), abs=1e-3)


def test_masked_prediction_counts_masked_tokens(study):
    row = tables.masked_prediction(study).query("pattern == 'iid' and mask_ratio == 0.5").iloc[0]
    model, images = study.transformer().model(), study.source.load("site_a", "test").images / 255
    mask = sample_token_masks(study.config.masked_gpt, "iid", 0.5, (study.config.grid_size,) * 2, len(images))
    found = inpaint(model, images, mask)
    right, commonest = found.filled == found.tokens, found.tokens == found.tokens.flatten().mode().values
    expected = [right[mask].float().mean(), commonest[mask].float().mean(), mask.sum()]
    assert row[["accuracy", "chance", "n"]].tolist() == pytest.approx([float(value) for value in expected])


def test_segmentation_history_holds_every_run_of_the_main_results(study):
    table = tables.segmentation_history(study)
    assert list(table["train"].unique()) == ["site_a", "site_b"]
    for train, rows in table.groupby("train"):
        run, own = study.segmenter(train), rows.drop(columns=["train", "chosen_by", "runs"])
        pd.testing.assert_frame_equal(own.reset_index(drop=True), run.history)
        score = rows[rows["chosen_by"].iloc[0]]
        assert rows.loc[score.idxmax(), "epoch"] == run.metrics["best_epoch"]


def test_main_results_agree_with_the_records(study, records, results):
    assert set(map(tuple, results[["train", "test"]].to_numpy())) == set(study.source.rows)
    cells = dict(iter(results.groupby(["train", "test", "method"])))
    for key, rows in records.groupby(["train", "test", "method"]):
        assert len(rows) == study.config.data.synthetic_test
        one = cells[key].set_index(["reduction", "measure"])
        assert one.loc[("per_image", "iou"), "mean"] == pytest.approx(rows["iou"].mean())
        tp, fp, fn = (rows[name].sum() for name in ("tp", "fp", "fn"))
        assert one.loc[("micro_lesion", "iou"), "mean"] == pytest.approx(tp / (tp + fp + fn))
        assert (one["low"] <= one["mean"] + 1e-12).all() and (one["mean"] <= one["high"] + 1e-12).all()
    assert results["published"].isna().all() and results["complete"].all() and (results["note"] == "").all()


def test_main_results_hold_the_paired_differences(study, records, results):
    assert results.loc[results["method"] == "tokencutseg", "diff"].isna().all()
    others = results[results["method"] != "tokencutseg"]
    assert len(others) and (others["diff_low"] <= others["diff"] + 1e-12).all()
    cells = results.set_index(["train", "test", "reduction", "measure", "method"])["mean"]
    for row in others.itertuples():
        key = (row.train, row.test, row.reduction, row.measure)
        assert row.diff == pytest.approx(cells[(*key, "tokencutseg")] - cells[(*key, row.method)])
    row = others.query("reduction == 'per_image' and measure == 'iou'").iloc[0]
    part = records[(records["train"] == row.train) & (records["test"] == row.test)]
    ours, theirs = (part[part["method"] == method] for method in ("tokencutseg", row.method))
    paired = paired_difference(ours, theirs, "per_image", "iou", study.config.evaluation.bootstrap_draws)
    assert (row.diff_low, row.diff_high, row.p) == pytest.approx((paired.low, paired.high, paired.p))
    assert row.p_holm >= row.p


def test_every_two_methods_are_compared(study, records, results):
    table = tables.pairwise(study, records)
    mean = results.set_index(["train", "test", "reduction", "measure", "method"])["mean"]
    for row in table.itertuples():
        key = (row.train, row.test, row.reduction, row.measure)
        assert row.diff == pytest.approx(mean[(*key, row.method)] - mean[(*key, row.other)])
        assert row.diff_low <= row.diff + 1e-12 and row.diff <= row.diff_high + 1e-12 and row.p_holm >= row.p
    methods = records["method"].nunique()
    assert len(table) == len(study.source.rows) * 4 * methods * (methods - 1) / 2
    columns = ["diff", "diff_low", "diff_high", "p"]
    with_ours = table[table["method"] == "tokencutseg"].rename(columns={"method": "ours", "other": "method"})
    keys = ["train", "test", "method", "reduction", "measure"]
    both = with_ours.merge(results, on=keys, suffixes=("", "_main"))
    assert len(both) == len(with_ours) > 0
    np.testing.assert_allclose(both[columns], both[[f"{name}_main" for name in columns]])


def test_cross_dataset_is_measured_against_the_in_domain_score(study, results):
    table = tables.cross_dataset(results)
    assert set(table["method"]) == {"tokencutseg"}
    assert (table.loc[table["train"] == table["test"], "diff"] == 0).all()
    cells = table.set_index(["train", "test", "reduction", "measure"])
    row = cells.loc[("site_a", "site_b", "per_image", "iou")]
    own, other = (study.records(study.segmenter("site_a"), test, "test")["iou"].mean() for test in ("site_a", "site_b"))
    assert row[["in_domain", "diff"]].tolist() == pytest.approx([own, other - own])


def test_other_methods_are_baselines_and_recipes_by_name(study, monkeypatch):
    others = {"evaluation.rivals": ["otsu", "unet", "released", "revised"]}
    monkeypatch.setattr(study, "config", study.config.override(others))
    monkeypatch.setattr(study.source, "rows", [("site_a", "site_b")])
    records, table = tables.main_records(study), tables.main_results(study)
    shown = table.drop_duplicates("method").set_index("method")["recipe"].to_dict()
    assert shown == {"tokencutseg": "revised", "otsu": "none", "unet": "none", "released": "released"}
    starts = {"tokencutseg": "self-supervised, imagenet", "otsu": "none", "released": "self-supervised"}
    starts["unet"] = study.baseline("unet", "site_a").metrics["pretrained_weights"]
    assert table.drop_duplicates("method").set_index("method")["initialisation"].to_dict() == starts
    run = study.segmenter("site_a", study.config.with_recipe("released"))
    assert run.model().config.segmentation.loss_input == "probabilities"
    theirs = records[records["method"] == "released"]
    assert theirs["iou"].tolist() == study.records(run, "site_b", "test")["iou"].tolist()
    assert set(theirs["runs"]) == {run.id}


def test_several_trainings_of_a_method_share_its_rows(study, monkeypatch):
    changes = {"evaluation.seeds": 2, "evaluation.rivals": ["unet", "otsu"], "evaluation.train_sets": ["site_a"]}
    monkeypatch.setattr(study, "config", study.config.override(changes))
    monkeypatch.setattr(study.source, "rows", [("site_a", "site_b")])
    records, table = tables.main_records(study), tables.main_results(study)
    rows = table.query("reduction == 'per_image' and measure == 'iou'").set_index("method")
    assert rows["seeds"].to_dict() == {"tokencutseg": 2, "unet": 2, "otsu": 1}
    means = {}
    for method in rows.index:
        runs = [study.run(study.method(method, "site_a", seed=seed)) for seed in range(rows.loc[method, "seeds"])]
        assert rows.loc[method, "runs"].split() == [run.id for run in runs]
        means[method] = np.array([study.records(run, "site_b", "test")["iou"].mean() for run in runs])
        assert rows.loc[method, "mean"] == pytest.approx(means[method].mean())
    assert rows.loc["unet", "diff"] == pytest.approx((means["tokencutseg"] - means["unet"]).mean())
    assert rows.loc["otsu", "diff"] == pytest.approx(rows.loc["tokencutseg", "mean"] - rows.loc["otsu", "mean"])
    groups = tables.score_by_group(study, records).query("grouping == 'site'").set_index("method")
    assert (rows["n"] == len(study.source.load("site_b", "test"))).all() and (groups["n"] == rows["n"]).all()
    pair = tables.pairwise(study, records).query("method == 'unet' and other == 'otsu' and measure == 'iou'").iloc[0]
    assert pair["diff"] == pytest.approx(means["unet"].mean() - means["otsu"][0])
    assert (pair["seeds"], pair["other_seeds"]) == (2, 1)
    costs = tables.budgets(study)
    assert costs.loc[costs["stage"].isin(["vqgan", "masked_gpt"]), "seed"].isin([study.config.seed]).all()
    assert costs.groupby("method")["seed"].nunique().to_dict() == {"tokencutseg": 2, "unet": 2}


def test_the_plan_can_leave_out_trainings_and_the_table_says_so(study, monkeypatch):
    plan = {"evaluation.rivals": "otsu,unet", "evaluation.seeds": 2, "evaluation.trained_once": "site_b"}
    monkeypatch.setattr(study, "config", study.config.override(plan | {"evaluation.left_out": "unet/site_b"}))
    made = list(tables.main_trainings(study))
    ours = [("site_a", "tokencutseg", 0), ("site_a", "tokencutseg", 1), ("site_b", "tokencutseg", 0)]
    assert [key for key in made if key[1] == "tokencutseg"] == ours
    assert [key for key in made if key[1] == "unet"] == [("site_a", "unet", 0), ("site_a", "unet", 1)]
    monkeypatch.setattr(study.source, "rows", [("site_b", "site_b")])
    rows = tables.main_results(study).set_index("method")
    assert rows.loc["unet", ["note", "n"]].tolist() == ["not trained", 0] and np.isnan(rows.loc["unet", "mean"])
    assert (rows.loc["otsu", "n"] > 0).all() and (rows.loc["otsu", "note"] == "").all()


def test_the_primary_training_set_comes_first(study, monkeypatch):
    monkeypatch.setattr(study.source, "primary", "site_b")
    rows = tables.available_rows(study)
    assert rows[0] == ("site_b", "site_b") and sorted(rows) == sorted(study.source.rows)


def test_budgets_are_those_of_the_runs(study):
    table = tables.budgets(study)
    assert list(zip(table["train"], table["method"], table["stage"], strict=True)) == [
        ("site_a", "tokencutseg", "vqgan"),
        ("site_a", "tokencutseg", "masked_gpt"),
        ("site_a", "tokencutseg", "segmentation"),
        ("site_b", "tokencutseg", "segmentation"),
    ]
    for row in table.itertuples():
        metrics = json.loads((study.store.folder / row.runs / "metrics.json").read_text())
        assert row.data == (row.train if row.stage == "segmentation" else "unlabelled")
        assert all(getattr(row, key) == metrics[key] for key in ("steps", "images_seen", "seconds"))


def test_a_pair_without_images_keeps_a_row_with_its_published_numbers(study, monkeypatch):
    monkeypatch.setattr(study.source, "rows", [*study.source.rows, ("isic2018", "isic2018")])
    table = tables.main_results(study)
    missing = table[table["train"] == "isic2018"]
    assert dict(zip(missing["measure"], missing["published"], strict=True)) == PUBLISHED["isic2018", "isic2018"]
    assert (missing["note"] == "data not available").all()
    assert missing["mean"].isna().all() and (missing["n"] == 0).all() and not missing["complete"].any()
    assert "isic2018" not in set(tables.cross_dataset(table)["train"])
    assert "isic2018" not in set(tables.segmentation_history(study)["train"])


def test_without_any_scored_pair_the_error_names_what_to_add(study, monkeypatch):
    monkeypatch.setattr(study.source, "rows", [("isic2018", "isic2018")])
    with pytest.raises(DataError, match="test split"):
        tables.main_results(study)


def test_main_results_of_one_training_set(study, monkeypatch):
    def about(*names):
        monkeypatch.setattr(study, "config", study.config.override({"evaluation.train_sets": names}))
        return study

    assert sorted(tables.wanted_rows(about())) == sorted(study.source.rows)
    rows = tables.available_rows(about("site_b"))
    assert rows == [(train, test) for train, test in study.source.rows if train == "site_b"] != []
    with pytest.raises(DataError, match=r"'site_c'.*site_a, site_b"):
        tables.available_rows(about("site_c"))


def leaking_source(shared, dataset="skin"):
    """One dataset whose test split repeats `shared` training images, one of them under another id."""
    generator = torch.Generator().manual_seed(0)

    def split(name, n):
        images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
        masks = torch.zeros(n, 32, 32, dtype=torch.uint8)
        masks[:, 8:20, 8:20] = 1
        return ImageSet(dataset, name, [f"{name}{i}" for i in range(n)], images, masks, n, [(32, 32)] * n)

    train, validation, test = split("train", 8), split("validation", 4), split("test", 6)
    test.images[:shared] = train.images[:shared]
    same = max(shared - 1, 0)
    test.ids[:same] = train.ids[:same]
    sets = {"train": train, "validation": validation, "test": test}
    loaders = {dataset: {name: (lambda part=part: part) for name, part in sets.items()}}
    return DataSource(dataset, dataset, [(dataset, dataset)], loaders)


@pytest.fixture
def leaking(study, tmp_path, monkeypatch):
    """A study of a leaking source whose segmenter is the tiny study's: which model is scored does not matter."""

    def opened(source):
        made, trained = Study(study.config, source, tmp_path), study.segmenter()
        run = made.run
        monkeypatch.setattr(made, "run", lambda one: trained if one.stage == "segmentation" else run(one))
        monkeypatch.setattr(tables, "train_missing", lambda *_: None)
        return made, tables.leakage(made).set_index(["method", "set_1", "set_2"]).sort_index(), trained

    return opened


def test_leakage_counts_shared_images_and_scores_without_them(leaking):
    made, whole, trained = leaking(leaking_source(shared=3))
    assert whole.index.is_unique
    pair = ("skin/train", "skin/test")
    row, otsu = whole.loc[("tokencutseg", *pair)], whole.loc[("otsu", *pair)]
    assert (row["same_id"], row["same_content"], row["images"], row["n_without"]) == (2, 1, 3, 3)
    ours, theirs = (made.records(run, "skin", "test")["iou"] for run in (trained, made.baseline("otsu")))
    for one, scores in ((row, ours), (otsu, theirs)):
        assert one[["iou", "iou_without"]].tolist() == pytest.approx([scores.mean(), scores[3:].mean()])
    assert row["low"] <= row["iou"] <= row["high"] and row["low_without"] <= row["iou_without"] <= row["high_without"]
    table = whole.drop(index="otsu", level="method").droplevel("method")
    both = ("unlabelled images or skin/train", "skin/test")
    assert table.loc[both, ["images", "n_without", "iou_without"]].tolist() == [3, 3, row["iou_without"]]
    assert (table.drop(index=[pair, both])["images"] == 0).all()
    # the unlabelled images leave the three out by themselves
    assert len(made.source.unlabelled()) == 5
    pool = table.loc[("unlabelled images", "skin/test")]
    assert (pool["train"], pool["n_without"], pool["iou_without"]) == ("skin", 6, pool["iou"])
    assert table["train"].notna().sum() == 3
    assert table.loc[("unlabelled images", "validation and test"), "images"] == 0


@pytest.mark.parametrize(("shared", "seen"), [(1, {"test0"}), (3, {"train0", "train1", "test2"})])
def test_test_images_seen_in_training_are_found(shared, seen):
    assert seen_in_training(leaking_source(shared), "skin", "skin") == seen


def test_leakage_of_a_test_set_that_was_trained_on_leaves_no_score(leaking):
    _, table, _ = leaking(leaking_source(shared=6, dataset="known"))
    row = table.loc[("tokencutseg", "known/train", "known/test")]
    assert row["n_without"] == 0 and np.isnan(row["iou_without"]) and not np.isnan(row["iou"])


def test_groups_are_thirds_of_each_test_set_under_one_score(study, records):
    table = tables.score_by_group(study, records)
    assert list(dict.fromkeys(table["grouping"])) == ["lesion size", "contrast", "site"]
    cells = dict(iter(table.groupby(["train", "test", "method"])))
    sizes = ("lesion size", "lesion_fraction", ["small", "medium", "large"])
    for (train, test, method), rows in records.groupby(["train", "test", "method"]):
        own = cells[train, test, method].set_index("grouping")
        for grouping, column, names in (sizes, ("contrast", "contrast", ["low", "medium", "high"])):
            part = own.loc[grouping]
            assert part["group"].tolist() == names and part["n"].tolist() == [4, 4, 4]
            np.testing.assert_allclose(part["mean"], rows.sort_values(column)["iou"].to_numpy().reshape(3, 4).mean(1))
        assert own.loc["site", ["group", "n", "mean"]].tolist() == [test, 12, pytest.approx(rows["iou"].mean())]


def test_diagnoses_are_groups_where_a_test_set_names_them(study, records, monkeypatch):
    images = study.source.load("site_b", "test")
    monkeypatch.setattr(images, "groups", ["nevus", "melanoma", None] * 4)
    table = tables.score_by_group(study, records).query("grouping == 'diagnosis' and method == 'tokencutseg'")
    assert set(table["test"]) == {"site_b"} and set(table["n"]) == {4}
    own = records.query("train == 'site_a' and test == 'site_b' and method == 'tokencutseg'").set_index("id")["iou"]
    expected = own[images.ids].groupby(np.array(images.groups)).mean()
    found = table[table["train"] == "site_a"].set_index("group")["mean"]
    assert found.to_dict() == pytest.approx(expected.to_dict())


def test_failures_are_the_lowest_scores_worst_first(study):
    images, predicted, scores = tables.worst_first(study, 5)
    records = study.records(study.segmenter("site_a"), "site_a", "test").set_index("id")["iou"]
    np.testing.assert_allclose(scores, records.sort_values().head(5))
    np.testing.assert_allclose(records.loc[images.ids], scores)
    both, either = ((predicted & images.masks).sum((1, 2)), (predicted | images.masks).sum((1, 2)))
    np.testing.assert_allclose(both / either, scores)


def test_a_small_training_set_takes_as_many_steps_as_the_largest(study, tmp_path):
    whole = leaking_source(shared=0)
    sets = {"large": whole.load("skin", "train"), "small": whole.load("skin", "train").subset(range(3))}
    scored = {split: partial(whole.load, "skin", split) for split in ("validation", "test")}
    loaders = {name: {"train": (lambda part=part: part), **scored} for name, part in sets.items()}
    source = DataSource("skins", "large", [("large", "large"), ("small", "small")], loaders)
    both = Study(study.config.override({"segmentation.images_per_epoch": None}), source, tmp_path)

    def drawn(name, **changes):
        config = both.config.override(changes)
        return both.spec(both.training("segmentation", config, train_set=name)).config.segmentation.images_per_epoch

    assert (drawn("large"), drawn("small"), drawn("large", **{"data.label_fraction": 0.5})) == (None, 8, 8)
    assert drawn("small", **{"segmentation.images_per_epoch": 5}) == 5
