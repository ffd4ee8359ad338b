"""The notebooks as files, and the whole study at preset tiny as a user runs it."""

import ast
import itertools
import json
import re
import statistics
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tokencutseg.cli import main
from tokencutseg.report.outputs import OUTPUTS

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))
EXPLORER = NOTEBOOKS[0].with_name("explorer.ipynb")
ASK, READ = "**What do you expect?** ", "**What to see.** "


def is_solution(cell):
    return "solution" in cell.metadata.get("tags", [])


def symbols_of(notebook):
    """The first column of the notebook's table of symbols, one entry per symbol."""
    (text,) = (cell.source for cell in notebook.cells if "| symbol | meaning | in the code |" in cell.source)
    rows = text.partition("| symbol |")[2].partition("\n\n")[0].splitlines()[2:]
    return [symbol for row in rows for symbol in re.findall(r"\$(.+?)\$", row.split(" | ")[0])]


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
    assert "claim" in first.lower() and f"| command | `./run_all.sh --only {path.stem[:2]}` |" in first
    assert "| time on two cores |" in first and "| number to expect |" in first
    assert "**Before you start.** You need" in first


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_question_stands_before_each_picture_and_how_to_read_it_after(path):
    cells = nbformat.read(path, as_version=4).cells
    at = [
        i
        for i, cell in enumerate(cells)
        if cell.cell_type == "code"
        and re.search(r"study\.figure\(|^code_explorer\(|^pipeline\(", cell.source, re.MULTILINE)
    ]
    assert len(at) >= len(OUTPUTS[path.stem].figures)
    for before, picture, after in zip([0, *at[:-1]], at, [*at[1:], len(cells)], strict=True):
        asked = [ASK in cell.source and "?" in cell.source.partition(ASK)[2] for cell in cells[before + 1 : picture]]
        assert any(asked), f"no question before {cells[picture].source!r}"
        if "code_explorer" not in cells[picture].source:  # what to see in that one stands before it
            assert any(READ in cell.source for cell in cells[picture + 1 : after]), cells[picture].source
    small = [len(cell.source.splitlines()) for cell in cells if cell.cell_type == "code" and not is_solution(cell)]
    assert statistics.median(small) <= 5


def test_each_symbol_is_defined_once():
    tables = [symbols_of(nbformat.read(path, as_version=4)) for path in NOTEBOOKS]
    every = list(itertools.chain(*tables))
    assert all(tables) and len(every) == len(set(every)) > 20


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_exercises_have_folded_solutions_that_show_their_answer(path):
    cells = nbformat.read(path, as_version=4).cells
    exercises = [i for i, cell in enumerate(cells) if f"### Exercise {int(path.stem[:2])}." in cell.source]
    assert len(exercises) in (2, 3)
    assert [i for i, cell in enumerate(cells) if is_solution(cell)] == [i + 1 for i in exercises]
    for i in exercises:
        solution = cells[i + 1]
        assert cells[i].cell_type == "markdown" and "?" in cells[i].source.partition("### Exercise")[2]
        assert solution.metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
        assert solution.source.startswith("# Solution\n")  # JupyterLab shows the first line of a folded cell
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(solution.source)))
        assert not re.search(r"study\.(tokenizer|transformer|baseline|table|figure)\(", solution.source)


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
    pictures = sum(
        "image/png" in output.get("data", {})
        for cell in executed.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert pictures >= len(OUTPUTS[name].figures)
    solutions = [cell for cell in executed.cells if is_solution(cell)]
    assert all(cell.outputs for cell in solutions)
    page = (study / "notebooks" / f"{name}.html").read_text()
    folded = re.findall(r"<details><summary [^>]*>Solution, computed</summary>\s*<div[^>]*jp-CodeCell", page)
    assert len(page) > 10_000 and len(folded) == len(solutions)


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
    columns = "train test method recipe reduction measure n mean low high published complete"
    assert list(table.columns)[:12] == columns.split()
    assert set(table["method"]) == {"tokencutseg", "otsu"}
    assert set(zip(table["train"], table["test"], strict=True)) == {
        ("site_a", "site_a"),
        ("site_b", "site_b"),
        ("site_a", "site_b"),
    }
    scores = table.set_index(["train", "test", "method", "reduction", "measure"])["mean"].unstack()
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
