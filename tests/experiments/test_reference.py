"""The committed study against the per-image records of its own runs, which need no data and no weights."""

import functools
import json

import pandas as pd
import pytest

from tokencutseg.evaluation import statistics
from tokencutseg.evaluation.statistics import holm, paired_difference, paired_differences, summarise, summary_table
from tokencutseg.experiments.claims import CLAIMS, judge
from tokencutseg.experiments.runs import read_records
from tokencutseg.files import CHECKOUT

STUDY = CHECKOUT / "results/reference/isic"


@pytest.fixture(autouse=True, scope="module")
def _draws_once():
    """How often each image is drawn is the same for every row with as many of them, and made once."""
    weights = statistics._weights
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_weights", functools.cache(lambda *of: list(weights(*of))))
        yield


def table(name):
    """A committed table."""
    return pd.read_csv(STUDY / f"tables/{name}.csv")


@functools.cache  # no test changes them
def records(runs, dataset="isic2017", split="test"):
    """The records behind a row, of all its runs."""
    found = []
    for seed, run in enumerate(runs.split()):
        (path,) = (STUDY / "runs" / run).glob("per_image-*.csv")
        rows = read_records(path)
        found.append(rows[(rows["dataset"] == dataset) & (rows["split"] == split)].assign(seed=seed))
    return pd.concat(found)


def equal(row, names, values):
    assert row[list(names)].astype(float).tolist() == pytest.approx(values, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", ["main_results", "baselines"])
def test_scores_and_differences_follow_from_the_records(name):
    rows = table(name)
    rows = rows[rows["n"] > 0].assign(train=rows.get("train", "isic2017"))
    for _, pair in rows.groupby(["train", "test"]):
        ours = pair.loc[pair["method"] == "tokencutseg", "runs"].iloc[0]
        for (test, runs), part in pair.groupby(["test", "runs"]):
            own, proposed = records(runs, test), records(ours, test)
            again = summary_table(own, [])
            assert again["n"].tolist() == part["n"].tolist() == [own["id"].nunique()] * len(part)
            assert (part["seeds"] == len(runs.split())).all()
            shown = list(zip(part["reduction"], part["measure"], strict=True))
            assert shown == list(zip(again["reduction"], again["measure"], strict=True))
            for (_, row), (_, made) in zip(part.iterrows(), again.iterrows(), strict=True):
                equal(row, ("mean", "low", "high"), made[["mean", "low", "high"]].tolist())
            if runs != ours:
                for (_, row), made in zip(part.iterrows(), paired_differences(proposed, own, shown), strict=True):
                    equal(row, made.columns(), list(made.columns().values()))
    for _, family in rows.groupby(["train", "test", "reduction", "measure"]):
        assert holm(family["p"]) == pytest.approx(family["p_holm"].to_numpy(), nan_ok=True)


def test_pairs_of_methods_follow_from_the_records():
    rows, scored = table("pairwise"), table("main_results")
    of = scored.drop_duplicates(["train", "method"]).set_index(["train", "method"])["runs"]
    for (train, test, *pair), part in rows.groupby(["train", "test", "method", "other"]):
        one, two = (of[train, method] for method in pair)
        assert set(part["runs"]) == {f"{one} {two}"}
        shown = list(zip(part["reduction"], part["measure"], strict=True))
        again = paired_differences(records(one, test), records(two, test), shown)
        for (_, row), made in zip(part.iterrows(), again, strict=True):
            equal(row, made.columns(), list(made.columns().values()))
    for _, family in rows.groupby(["train", "test", "measure"]):
        assert holm(family["p"]) == pytest.approx(family["p_holm"].to_numpy(), nan_ok=True)


def test_label_efficiency_follows_from_the_records():
    for test, rows in table("label_efficiency").groupby("test"):
        assert holm(rows["p"]) == pytest.approx(rows["p_holm"].to_numpy(), nan_ok=True)
        ours = rows[rows["method"] == "tokencutseg"].set_index("fraction")["runs"]
        for _, row in rows.iterrows():
            trained = records(row["runs"], test)
            again, means = summarise(trained, "per_image", "iou"), trained.groupby("seed")["iou"].mean()
            equal(row, ("mean", "low", "high"), [again.mean, again.low, again.high])
            equal(row, ("seeds", "seed_low", "seed_high"), [len(means), min(means), max(means)])
            if row["method"] != "tokencutseg":
                proposed = records(ours[row["fraction"]], test)
                made = paired_difference(proposed, trained, "per_image", "iou").columns()
                equal(row, made, list(made.values()))


ABLATIONS = {"stages": "previous", "graph_radius": "first", "codebook_size": "first", "revised_steps": "best"}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_follow_from_the_validation_records(name):
    rows, rule, reference = table(name), ABLATIONS[name], None
    for _, row in rows.iterrows():
        scored = records(row["runs"], split="validation")
        again = summarise(scored, "per_image", "iou")
        equal(row, ("n", "mean", "low", "high"), [again.n, again.mean, again.low, again.high])
        if reference is not None:
            made = paired_difference(scored, reference, "per_image", "iou").columns()
            equal(row, made, list(made.values()))
        if rule == "best":
            assert row["kept"] == (not row["diff"] <= 0)
        if {"previous": True, "first": reference is None, "best": row.get("kept")}[rule]:
            reference = scored
    assert holm(rows["p"]) == pytest.approx(rows["p_holm"].to_numpy(), nan_ok=True)


def test_scores_by_group_are_those_of_thirds_by_rank():
    columns = {"lesion size": ("lesion_fraction", "small", "large"), "contrast": ("contrast", "low", "high")}
    scores = table("score_by_group")
    assert len(scores)
    for (_, test, runs), rows in scores.groupby(["train", "test", "runs"]):
        own, rows = records(runs, test), rows.set_index(["grouping", "group"])
        for grouping, (column, low, high) in columns.items():
            rank = own[own["seed"] == 0].set_index("id")[column].rank(pct=True)
            for group, ids in ((low, rank[rank <= 1 / 3].index), (high, rank[rank > 2 / 3].index)):
                chosen = own[own["id"].isin(ids)]
                equal(rows.loc[(grouping, group)], ("n", "mean"), [len(ids), chosen["iou"].mean()])
        equal(rows.loc[("site", test)], ("n", "mean"), [own["id"].nunique(), own["iou"].mean()])


def test_leakage_starts_from_the_score_on_all_images():
    rows = table("leakage").dropna(subset="runs")
    for _, row in rows.iterrows():
        own = records(row["runs"], row["set_2"].removesuffix("/test"))
        equal(row, ("iou", "n_without"), [own["iou"].mean(), own["id"].nunique() - row["images"]])
    assert len(rows)


def test_verdicts_follow_from_the_tables_beside_them():
    names = {claim.table for claim in CLAIMS} & {path.stem for path in (STUDY / "tables").glob("*.csv")}
    tables = {name: table(name) for name in names}
    preset = json.loads((STUDY / "config.json").read_text())["preset"]
    for claim, (_, row) in zip(CLAIMS, table("claims").iterrows(), strict=True):
        again = judge(claim, tables, preset)
        assert (row["claim"], row["verdict"], row["reason"]) == (again["claim"], again["verdict"], again["reason"])
