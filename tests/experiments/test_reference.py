"""The committed studies against the records of their own runs, which need no data and no weights."""

import json
from functools import cache

import pandas as pd
import pytest
from tokencutseg.study.readme import REFERENCE

from tokencutseg.evaluation.statistics import holm, paired_difference, paired_differences, seeded_difference, summarise
from tokencutseg.experiments.claims import claims
from tokencutseg.experiments.runs import RECORDS, Run

STUDIES = sorted(path.parent for path in REFERENCE.glob("*/runs") if (path.parent / "tables/main_results.csv").exists())
GRIDS = sorted(
    path
    for name in ("graph_radius", "codebook_size", "stages", "revised_steps")
    for path in REFERENCE.glob(f"small-*/tables/{name}.csv")
)


COMPARED = [
    REFERENCE / name
    for name in (
        "small-isic/tables/baselines.csv",
        "small-isic/tables/label_efficiency.csv",
        "small-isic2017-encoder/tables/baselines.csv",
        "small-isic2017-encoder/tables/label_efficiency.csv",
        "small-isic2017-h100/tables/label_efficiency.csv",
    )
]
SHOWN = [
    ("per_image", "iou"),
    ("per_image", "dice"),
    ("micro_two_class", "iou"),
    ("per_image", "nsd"),
    ("per_image", "hd95"),
]


def scored_by(study, run, test):
    """The records of a run on the test images of a dataset, of the version that the study's tables were made with."""
    (path,) = (study / "runs" / run).glob("per_image-*.csv")
    return pd.read_csv(path, dtype={"id": str}).query("dataset == @test and split == 'test'")


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_main_results_follow_from_the_records_of_the_runs(study):
    results, budgets = (pd.read_csv(study / f"tables/{name}.csv") for name in ("main_results", "budgets"))
    last = budgets[budgets["stage"].isin(["segmentation", "baseline"])].set_index(["train", "method"])["run"]
    checked = 0
    for (train, test, method), rows in results[results["n"] > 0].groupby(["train", "test", "method"]):
        run = "otsu" if method == "otsu" else last[train, method]
        records = scored_by(study, run, test)
        cells = rows.set_index(["reduction", "measure"])
        for reduction, measure in SHOWN:
            row, again = cells.loc[(reduction, measure)], summarise(records, reduction, measure)
            assert [again.mean, again.low, again.high] == pytest.approx(row[["mean", "low", "high"]].tolist(), abs=1e-5)
            assert again.n == row["n"] == records["id"].nunique()
            checked += 1
        if "diff" not in results or method == "tokencutseg":
            continue
        ours = scored_by(study, last[train, "tokencutseg"], test)
        for shown, lead in zip(SHOWN, paired_differences(ours, records, SHOWN), strict=True):
            assert [lead.difference, lead.low, lead.high, lead.p] == pytest.approx(
                cells.loc[shown, ["diff", "diff_low", "diff_high", "p"]].tolist(), abs=1e-5, nan_ok=True
            )
    assert checked == len(SHOWN) * len(results.query("n > 0").drop_duplicates(["train", "test", "method"])) > 0


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_budgets_are_those_of_the_runs(study):
    for row in pd.read_csv(study / "tables/budgets.csv").itertuples():
        run = Run(study / "runs" / row.run)
        assert run.done and run.metadata["stage"] == row.stage
        assert (run.metrics["images_seen"], run.metrics["steps"]) == (row.images_seen, row.steps)
        assert run.metrics["seconds"] == pytest.approx(row.seconds)


@pytest.mark.parametrize(
    "table",
    sorted(
        path
        for name in ("main_results", "baselines", "label_efficiency")
        for path in REFERENCE.glob(f"small-*/tables/{name}.csv")
    ),
    ids=lambda path: f"{path.parents[1].name}-{path.stem}",
)
def test_p_is_adjusted_over_all_that_one_question_compares(table):
    """The methods of one pair of sets, reduction and measure; in `label_efficiency` all methods and shares."""
    rows = pd.read_csv(table).dropna(subset="p")
    whole = table.stem == "label_efficiency"
    together = [name for name in ("train", "test", "reduction", "measure") if name in rows and not whole]
    for _, part in rows.groupby(together) if together else [((), rows)]:
        assert holm(part["p"]) == pytest.approx(part["p_holm"].to_numpy())
    assert len(rows)


@pytest.mark.parametrize(
    "table", sorted(REFERENCE.glob("small-*/tables/score_by_group.csv")), ids=lambda path: path.parents[1].name
)
def test_scores_by_group_follow_from_the_records(table):
    """Of the study's own recipe on the test images of its first pair: thirds by rank, the smallest or palest first."""
    rows, budgets = pd.read_csv(table), pd.read_csv(table.with_name("budgets.csv"))
    pair = rows.loc[0, ["train", "test"]]
    run = budgets[(budgets["train"] == pair["train"]) & (budgets["method"] == "tokencutseg")]["run"].iloc[-1]
    records = scored_by(table.parents[1], run, pair["test"])
    own = rows[(rows[["train", "test"]] == pair).all(axis=1) & (rows["method"] == "tokencutseg")].set_index(
        ["grouping", "group"]
    )
    for grouping, column in (("lesion size", "lesion_fraction"), ("contrast", "contrast")):
        low, high = ({"lesion size": ("small", "large"), "contrast": ("low", "high")})[grouping]
        known = records.dropna(subset=column)
        ranks = known[column].rank() / len(known)
        for group, chosen in ((low, known[ranks <= 1 / 3]), (high, known[ranks > 2 / 3])):
            assert own.loc[(grouping, group), ["n", "mean"]].tolist() == pytest.approx(
                [len(chosen), chosen["iou"].mean()]
            )


CELL = {
    "graph_radius": lambda config, row: config.segmentation.graph_radius == row.radius,
    "codebook_size": lambda config, row: config.vqgan.codebook_size == row.codebook_size,
    "stages": lambda config, row: row.stages != "tokenizer" or config.masked_gpt.n_layer == 0,
    "revised_steps": lambda config, row: "." not in row.step or str(config.value(row.step)) == row.instead,
}
"""Whether a cell has the setting that its row names."""


@pytest.mark.parametrize("table", GRIDS, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_grids_follow_from_the_records_of_their_cells(table, validation_records):
    """Scores, and paired changes: to the first row, the row above, or the last one that was kept."""
    known, found, kept = validation_records(table.parents[1]), [], 0
    for i, row in enumerate(pd.read_csv(table).itertuples()):
        found.append(
            next(
                records
                for config, score, records in known
                if CELL[table.stem](config, row)
                and [score.mean, score.low, score.high] == pytest.approx([row.mean, row.low, row.high])
            )
        )
        if i:
            reference = {"stages": i - 1, "revised_steps": kept}.get(table.stem, 0)
            change = paired_difference(found[i], found[reference], "per_image", "iou")
            assert [change.difference, change.low, change.high] == pytest.approx(
                [row.change, row.change_low, row.change_high]
            )
        kept = i if getattr(row, "kept", True) else kept
    assert len(found) > 1


@pytest.mark.parametrize("table", COMPARED, ids=lambda path: f"{path.parents[1].name}-{path.stem}")
def test_leads_follow_from_the_records_of_the_trainings(table):
    """Each row's score, and how far ours is diff of it: over images, and over seeds where there are several."""
    known, ours = scored_on_test_images(table.parents[1]), {}
    rows = pd.read_csv(table).query("reduction == 'per_image' and measure in ('iou', 'nsd', 'hd95')")
    for row in rows.itertuples():
        share = getattr(row, "fraction", 1.0)
        trainings = next(
            group
            for key, group in known.items()
            if key[:2] == (row.method, share)
            and len(group) == getattr(row, "seeds", 1)
            and pd.concat(group)[row.measure].mean() == pytest.approx(row.mean)
        )
        again = summarise(pd.concat(trainings), "per_image", row.measure, groups="id")
        assert [again.low, again.high, len(trainings[0])] == pytest.approx([row.low, row.high, row.n])
        if row.method == "tokencutseg":
            ours[share, row.measure] = trainings
            continue
        lead = seeded_difference(ours[share, row.measure], trainings, row.measure)
        assert [lead.difference, lead.low, lead.high, lead.p] == pytest.approx(
            [row.diff, row.diff_low, row.diff_high, row.p]
        )
    assert len(rows) > len(ours) > 0


def seed_of(records):
    """The seed of the run that records lie with."""
    run = Run(records.parent)
    return run.config.seed if run.done else -1


def scored_on_test_images(study):
    """The records on ISIC 2017's test images by method, share of the labels and budget, one frame per seed, in their
    order: those of one seed share their draw of the labels."""
    recipe, found = json.loads((study / "config.json").read_text())["recipe"], {}
    for path in sorted(study.glob(f"runs/*/{RECORDS}"), key=seed_of):
        records = pd.read_csv(path, dtype={"id": str}).query("dataset == 'isic2017' and split == 'test'")
        if len(records):
            run, key = Run(path.parent), ("otsu", 1.0)
            if run.done:
                about, config = run.metadata, run.config
                method = about["name"] or ("tokencutseg" if config.recipe == recipe else config.recipe)
                key = (method, config.data.label_fraction, json.dumps(about["covers"]["segmentation"]))
            found.setdefault(key, []).append(records)
    return found


@pytest.mark.parametrize(
    "table", sorted(REFERENCE.glob("small-*/tables/deviations.csv")), ids=lambda path: path.parents[1].name
)
def test_deviations_follow_from_the_records_of_their_cells(table, validation_records):
    rows, known = pd.read_csv(table), validation_records(table.parents[1])
    for row in rows.itertuples():
        before, after = (
            next(
                records
                for config, score, records in known
                if score.mean == pytest.approx(mean)
                and config.recipe == row.recipe
                and str(config.value(row.switch)) == setting
            )
            for mean, setting in ((row.reference, row.setting), (row.mean, row.instead))
        )
        change = seeded_difference([after], [before])
        assert [change.difference, change.low, change.high, change.p, change.n] == pytest.approx(
            [row.difference, row.low, row.high, row.p, row.n]
        )
    assert holm(rows["p"]) == pytest.approx(rows["p_holm"].to_numpy()) and len(rows) > 8


@pytest.mark.parametrize(
    "table", sorted(REFERENCE.glob("small-*/tables/feature_quality_tokens.csv")), ids=lambda path: path.parents[1].name
)
def test_feature_quality_follows_from_the_tokens_of_each_image(table):
    """The draws of an untrained network are pooled, and so is each feature over the tokens of all images."""
    tokens = pd.read_csv(table).groupby(["features", "head", "id"])[["tp", "fp", "fn", "tn"]].sum()
    rows = pd.read_csv(table.with_name("feature_quality.csv"))
    for row in rows.itertuples():
        own, ours = (tokens.loc[features, row.head].reset_index() for features in (row.features, "transformer"))
        again = summarise(own, "micro_lesion", "iou")
        assert [again.mean, again.low, again.high] == pytest.approx([row.iou, row.iou_low, row.iou_high])
        if row.features != "transformer":
            lead = paired_difference(ours, own, "micro_lesion", "iou")
            assert [lead.difference, lead.low, lead.high] == pytest.approx([row.diff, row.diff_low, row.diff_high])
    assert len(rows) == len(tokens.groupby(level=["features", "head"]))


@pytest.fixture(scope="module")
def validation_records():
    """Configuration, score and records of each committed training that was scored on validation images."""

    @cache
    def read(study):
        found = []
        for path in study.glob(f"runs/segmentation-*/{RECORDS}"):
            records = pd.read_csv(path, dtype={"id": str})
            records = records[records["split"] == "validation"]
            if len(records):
                found.append((Run(path.parent).config, summarise(records, "per_image", "iou"), records))
        return found

    return read


@pytest.mark.parametrize(
    "table", sorted(REFERENCE.glob("small-*/tables/claims.csv")), ids=lambda path: path.parents[1].name
)
def test_verdicts_follow_from_the_tables_beside_them(table):
    names = ("main_results", "label_efficiency", "baselines", "feature_quality")
    main, *others = (
        pd.read_csv(path) if (path := table.with_name(f"{name}.csv")).is_file() else None for name in names
    )
    again = claims(main, dict(zip(names[1:], others, strict=True)), "small").set_index("claim")
    for row in pd.read_csv(table).set_index("claim").itertuples():
        made = again.loc[row.Index]
        assert made["verdict"] == row.verdict
        assert row.reason.startswith(made["reason"])  # and then, which images were missing
        shown, written = (
            [value for value in values if not pd.isna(value)]
            for values in (made[["measured", "low", "high"]], (row.measured, row.low, row.high))
        )
        assert shown == pytest.approx(written)
