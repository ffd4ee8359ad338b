"""The notebooks as files, and what they leave after a run at preset tiny."""

import ast
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tokencutseg.explore.widgets import HEADLESS
from tokencutseg.files import results_folder
from tokencutseg.report.index import write_index
from tokencutseg.report.notebooks import find_notebooks

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in sorted(FOLDER.glob("*.ipynb"))}
NUMBERED = {name: notebook for name, notebook in NOTEBOOKS.items() if name[0].isdigit()}
each = pytest.mark.parametrize("name", NUMBERED)


def code(name):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


def tagged(name, tag):
    return [cell for cell in code(name) if tag in cell.metadata.get("tags", [])]


def written(name, kind):
    """The tables or figures that a notebook writes."""
    return re.findall(rf'study\.{kind}\(\s*"(\w+)"', "\n".join(cell.source for cell in code(name)))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stripped_and_offline(name):
    nbformat.validate(NOTEBOOKS[name])
    assert not any(cell.outputs or cell.execution_count for cell in code(name))
    for cell in NOTEBOOKS[name].cells:
        assert not re.search(r"https?://", cell.source), "a link that needs a network"
        for target in re.findall(r"\]\(([^)#]+)\)", cell.source):
            assert (FOLDER / target).exists(), target


@each
def test_parameters_are_literals(name):
    (cell,) = tagged(name, "parameters")
    assigned = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    assert list(assigned) == ["preset", "recipe", "seed", "data", "results", "overrides"]


@each
def test_one_section_is_built_from_nothing(name):
    (cell,) = (cell for cell in code(name) if re.search("scratch(-code)?$", cell.id))
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cell.source)))
    assert "from tokencutseg.plots" not in cell.source and "study.table" not in cell.source


@each
def test_exercises_have_folded_solutions(name):
    cells = NUMBERED[name].cells
    exercises = [i for i, cell in enumerate(cells) if f"### Exercise {int(name[:2])}." in cell.source]
    assert exercises and [cells[i + 1] for i in exercises] == tagged(name, "solution")
    for solution in tagged(name, "solution"):
        assert solution.metadata["jupyter"] == {"source_hidden": True}
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(solution.source)))
        assert "print(" not in solution.source, "an answer is hidden: see `answer`"


def test_symbols_are_defined_once():
    texts = [cell.source for notebook in NUMBERED.values() for cell in notebook.cells]
    rows = re.findall(r"^\| (\$.+?) \|", "\n".join(text for text in texts if "| symbol |" in text), re.MULTILINE)
    symbols = re.findall(r"\$(.+?)\$", " ".join(rows))
    assert len(symbols) == len(set(symbols)) > 20


TEACHING = (FOLDER.parent / "docs/teaching.md").read_text()
EXPECTED = re.findall(r"^\| (\d) \|.*\| `(\w+)`: `(\w+)` where `(.+)` \| (-?[\d.]+) to (-?[\d.]+) \|$", TEACHING, re.M)
"""Lesson, table, column, rows, and the bounds of each number that docs/teaching.md promises."""


@each
def test_a_notebooks_head_names_a_number_to_expect(name):
    (head,) = re.findall(r"\| number to look at.*", NUMBERED[name].cells[0].source)
    known = [(table, low, high) for lesson, table, _, _, low, high in EXPECTED if int(lesson) == int(name[:2])]
    assert any(f"`{table}`" in head and f"{low} to {high}" in head for table, low, high in known)


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda expected: " ".join(expected[:3]))
def test_expected_numbers_are_those_of_the_default_study(expected):
    _, table, column, rows, low, high = expected
    file = results_folder() / "quick-synthetic" / "tables" / f"{table}.csv"
    if not file.is_file():
        pytest.skip(f"{file} is not there; ./run_all.sh makes it")
    numbers = pd.read_csv(file).query(rows)[column]
    assert len(numbers) and numbers.between(float(low), float(high)).all()


@pytest.mark.slow
@each
def test_every_table_and_figure_is_written(tiny_study, name):
    assert written(name, "table") or written(name, "figure")
    for table in written(name, "table"):
        assert len(pd.read_csv(tiny_study / "tables" / f"{table}.csv"))
    for figure in written(name, "figure"):
        assert (tiny_study / "figures" / f"{figure}.png").is_file()


@pytest.mark.slow
@each
def test_answers_are_folded_and_stills_stand_for_widgets(tiny_study, name):
    executed = nbformat.read(tiny_study / "notebooks" / f"{name}.ipynb", as_version=4)
    assert "widgets" not in executed.metadata
    for cell in executed.cells:
        if "solution" in cell.metadata.get("tags", []):
            assert [output.output_type for output in cell.outputs] == ["execute_result"]
            assert cell.outputs[0].data["text/html"].startswith("<details>")
        if re.search(r"^explorer?\(", cell.get("source", ""), re.MULTILINE):
            shown = str(cell.outputs)
            assert "With a running kernel" in shown and ("<img" in shown or "image/png" in shown)


@pytest.mark.slow
def test_the_results_page_shows_every_table_and_figure(tiny_study):
    page = (tiny_study / "index.html").read_text()
    assert "lacks what" not in page and "Not made" not in page and "Not executed" not in page
    written = {f"{path.parent.name}/{path.name}" for kind in ("csv", "png") for path in tiny_study.glob(f"*/*.{kind}")}
    assert written - set(re.findall('href="(.+?)"', page)) == {"tables/claims.csv"}, "this preset decides none"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # of empty masks and probes that learn nothing
def test_all_run_on_few_images_with_tiny_lesions(tmp_path, monkeypatch):
    """Of four patients with ten images each, a third without lesion, the others with one of 4 × 4 pixels."""
    rng, rows = np.random.default_rng(0), ["id,patient_id,dx"]
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for n in range(40):
        pixels, mask = rng.normal((200, 150, 130), 12, (64, 64, 3)), np.zeros((64, 64), np.uint8)
        y, x = rng.integers(2, 58, 2)
        mask[y : y + 4, x : x + 4] = 255 * (n % 3 > 0)
        pixels[mask > 0] -= 90
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "own" / "images" / f"{n}.png")
        Image.fromarray(mask).save(tmp_path / "own" / "masks" / f"{n}.png")
        rows.append(f"{n},patient {n // 10},{'nevus' if n < 20 else 'melanoma'}")
    (tmp_path / "own" / "manifest.csv").write_text("\n".join(rows))
    monkeypatch.setenv(HEADLESS, "1")
    for name in NUMBERED:
        names = {}
        for cell in code(name):
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= {"preset": "tiny", "data": [str(tmp_path / "own")], "results": str(tmp_path / "results")}
        plt.close("all")
    assert "lacks what" not in write_index(names["study"].folder, find_notebooks()).read_text()


@pytest.mark.slow
def test_the_explorer_runs():
    names = {}
    for cell in code("explorer"):
        exec(cell.source, names)
    assert len(names["images"]) == 200
