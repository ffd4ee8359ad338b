"""The committed studies against the records of their own runs, which need no data and no weights."""

import pandas as pd
import pytest

from tokencutseg.evaluation.summaries import summarise
from tokencutseg.study.readme import REFERENCE
from tokencutseg.study.store import RECORDS, Run

STUDIES = sorted(path.parent for path in REFERENCE.glob("*/runs") if (path.parent / "tables/main_results.csv").exists())
RADII = sorted(REFERENCE.glob("small-*/tables/graph_radius.csv"))


SHOWN = [("image_lesion", "iou"), ("image_lesion", "dice"), ("pooled_two_class", "iou"), ("image_lesion", "hd95")]


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_main_results_follow_from_the_records_of_the_runs(study):
    results, budgets = (pd.read_csv(study / f"tables/{name}.csv") for name in ("main_results", "budgets"))
    last = budgets[budgets["stage"].isin(["segmentation", "baseline"])].set_index(["train", "method"])["run"]
    checked = 0
    for (train, test, method), rows in results[results["n"] > 0].groupby(["train", "test", "method"]):
        run = "otsu" if method == "otsu" else last[train, method]
        (path,) = (study / "runs" / run).glob("per_image-*.csv")  # of the version that the table was made with
        records = pd.read_csv(path, dtype={"id": str})
        records = records[(records["dataset"] == test) & (records["split"] == "test")]
        cells = rows.set_index(["definition", "measure"])
        for definition, measure in SHOWN:
            row, again = cells.loc[(definition, measure)], summarise(records, definition, measure)
            assert [again.mean, again.low, again.high] == pytest.approx(row[["mean", "low", "high"]].tolist(), abs=1e-5)
            assert again.n == row["n"] == records["id"].nunique()
            checked += 1
    assert checked == len(SHOWN) * len(results.query("n > 0").drop_duplicates(["train", "test", "method"])) > 0


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_budgets_are_those_of_the_runs(study):
    for row in pd.read_csv(study / "tables/budgets.csv").itertuples():
        run = Run(study / "runs" / row.run)
        assert run.done and run.about["stage"] == row.stage
        assert (run.metrics["images_seen"], run.metrics["steps"]) == (row.images_seen, row.steps)
        assert run.metrics["seconds"] == pytest.approx(row.seconds)


@pytest.mark.parametrize("table", RADII, ids=lambda path: path.parents[1].name)
def test_graph_radius_follows_from_the_records_of_its_cells(table):
    cells = [Run(folder) for folder in table.parents[1].glob("runs/segmentation-*")]
    for row in pd.read_csv(table).itertuples():
        own = [run for run in cells if run.config.segmentation.graph_radius == row.radius]
        scores = [summarise(pd.read_csv(run.folder / RECORDS, dtype={"id": str}), "image_lesion", "iou") for run in own]
        assert any([score.mean, score.low, score.high] == pytest.approx([row.mean, row.low, row.high])
                   for score in scores), row.radius
