"""The notebooks as files, and the whole study at preset tiny as a user runs it."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tokencutseg.cli import main
from tokencutseg.study.outputs import OUTPUTS

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
EXPLORER = NOTEBOOKS[0].with_name("explorer.ipynb")


def test_there_is_one_notebook_for_each_list_of_outputs():
    assert [path.stem for path in NOTEBOOKS] == list(OUTPUTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_take_their_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    (parameters,) = (cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    names = [line.split("=")[0].strip() for line in parameters.source.splitlines()]
    assert names == ["preset", "recipe", "seed", "data", "results", "overrides"]
    assert notebook.cells[0].cell_type == "markdown"
    first = notebook.cells[0].source
    assert "claim" in first.lower() and f"./run_all.sh --only {path.stem[:2]}" in first
    assert code[-1].source.strip() == "study.finish()"


@pytest.fixture(scope="module")
def study(tiny_study):
    return tiny_study


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_is_there_and_none_is_empty(study, name):
    record = json.loads((study / "notebooks" / f"{name}.done.json").read_text())
    assert set(record["tables"]) == set(OUTPUTS[name].tables) and set(record["figures"]) == set(OUTPUTS[name].figures)
    for table in OUTPUTS[name].tables:
        assert len(pd.read_csv(study / "tables" / f"{table}.csv"))
    for figure in OUTPUTS[name].figures:
        assert (study / "figures" / f"{figure}.png").stat().st_size > 5000
    executed = nbformat.read(study / "notebooks" / f"{name}.ipynb", as_version=4)
    pictures = sum("image/png" in output.get("data", {}) for cell in executed.cells if cell.cell_type == "code"
                   for output in cell.outputs)
    assert pictures >= len(OUTPUTS[name].figures)
    assert (study / "notebooks" / f"{name}.html").stat().st_size > 10_000


def test_the_explorer_runs_on_a_trained_model(study, monkeypatch, capsys):
    notebook = nbformat.read(EXPLORER, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    model = next((study / "runs").glob("segmentation-*/metrics.json")).parent
    monkeypatch.setenv("TOKENCUTSEG_EXPLORE_MODEL", str(model))
    names = {}
    for cell in code:
        exec(cell.source, names)
    assert f"The model is {model}." in capsys.readouterr().out
    table = names["table"]
    assert table["fires"].sum() == names["words"].tokens.numel() and set(table) > {"code", "border", "times_average"}
    assert list(names["often"]["border"]) == sorted(names["often"]["border"], reverse=True)


def test_the_index_links_everything(study):
    page = (study / "index.html").read_text()
    for name, outputs in OUTPUTS.items():
        assert f"notebooks/{name}.html" in page
        assert all(f"figures/{figure}.png" in page for figure in outputs.figures)
        assert all(f"tables/{table}.csv" in page for table in outputs.tables)


def test_the_main_table_has_every_row_and_column(study):
    table = pd.read_csv(study / "tables" / "main_results.csv")
    columns = "train test method recipe definition measure n mean low high published complete"
    assert list(table.columns)[:12] == columns.split()
    assert set(table["method"]) == {"tokencutseg", "otsu"}
    assert set(zip(table["train"], table["test"], strict=True)) == {("site_a", "site_a"), ("site_b", "site_b"),
                                                                    ("site_a", "site_b")}
    scores = table.set_index(["train", "test", "method", "definition", "measure"])["mean"].unstack()
    assert (scores["dice"] <= 2 * scores["iou"] / (1 + scores["iou"]) + 1e-9).all()
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()


def modified(study, pattern):
    return {path: path.stat().st_mtime_ns for path in study.glob(pattern)}


def test_a_second_call_leaves_everything_as_it_is(study):
    before = modified(study, "notebooks/*.html") | modified(study, "runs/*/metrics.json")
    assert len(before) >= 15
    assert main(["run", "--preset", "tiny", "--results", str(study.parent)]) == 0
    assert modified(study, "notebooks/*.html") | modified(study, "runs/*/metrics.json") == before


def test_a_second_execution_trains_nothing(study):
    before, pages = modified(study, "runs/*/metrics.json"), modified(study, "notebooks/03*.html")
    assert main(["run", "--preset", "tiny", "--results", str(study.parent), "--only", "03", "--again"]) == 0
    assert modified(study, "runs/*/metrics.json") == before and modified(study, "notebooks/03*.html") != pages
