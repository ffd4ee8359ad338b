"""A study's page: its numbers against those of the tables, its links, and what it does without them."""

import json
import re
import shutil
import subprocess

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from PIL import Image

from tokencutseg.files import CHECKOUT
from tokencutseg.report.index import MAX_ROWS, SHOW_IMAGES, write_index
from tokencutseg.report.notebooks import find_notebooks

REFERENCE = CHECKOUT / "results/reference/isic"


@pytest.fixture
def study(tmp_path):
    """Two executed notebooks, of which the first has succeeded; one table and one figure of its own, one table left."""
    study = tmp_path / "tiny-synthetic"
    for folder in ("notebooks", "tables", "figures"):
        (study / folder).mkdir(parents=True)
    code = 'study.table("reconstruction", x)\nstudy.figure("vqgan_curves", y)'
    for name, source in (("01_vqgan_pretrain", code), ("02_masked_gpt", "")):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, study / "notebooks" / f"{name}.ipynb")
        for suffix in (".html", ".log"):
            (study / "notebooks" / (name + suffix)).touch()
    (study / "notebooks" / "01_vqgan_pretrain.done.json").write_text('{"key": "x", "seconds": 12}')
    (study / "config.json").write_text(json.dumps({"preset": "tiny", "recipe": "revised", "seed": 0}))
    row = {"dataset": "a<b>", "measure": "psnr", "mean": 23.123456, "low": 22.0, "high": 24.5}
    pd.DataFrame([row]).to_csv(study / "tables" / "reconstruction.csv", index=False)
    pd.DataFrame({"epoch": range(MAX_ROWS + 40)}).to_csv(study / "tables" / "leftover.csv", index=False)
    Image.new("RGB", (4, 3)).save(study / "figures" / "vqgan_curves.png")
    return study


def test_every_link_leads_somewhere_and_none_outside(study):
    page = write_index(study).read_text()
    links = re.findall(r'(?:href|src)="([^"#]+)"', page)
    assert {"notebooks/01_vqgan_pretrain.html", "tables/reconstruction.csv", "figures/vqgan_curves.png"} <= set(links)
    assert all((study / link).is_file() for link in links)
    assert {anchor for anchor in re.findall(r'href="#([^"]+)"', page)} == set(re.findall(r'<h2 id="([^"]+)"', page))
    assert "://" not in page and "<script" not in page


def test_sections(study, tmp_path):
    missing = tmp_path / "03_deepcut_seg.ipynb"
    cells = [nbformat.v4.new_markdown_cell("# 03 · Graphs"), nbformat.v4.new_code_cell('study.figure("graphs", x)')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), missing)
    page = write_index(study, [missing]).read_text()
    first, second, third, further = re.split("<h2", page)[1:]
    assert "in 12 s" in first and "vqgan_curves" in first and "23.123 [22.000, 24.500]" in first
    assert "Not finished" in second
    assert "03 · Graphs" in third and "Not executed" in third and "graphs" in third
    assert "leftover" in further and f"{MAX_ROWS} of {MAX_ROWS + 40} rows" in further
    assert "preset tiny · recipe revised · seed 0" in page and "a<b>" not in page


def test_sets_may_be_called_by_numbers_and_a_copy_that_was_kept_is_no_section(study):
    row = {"train": "2019", "reduction": "per_image", "measure": "iou", "mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    differs = {"diff": 0.1, "diff_low": 0.0, "diff_high": 0.2, "p_holm": 1.0, "seeds": 1, "initialisation": "none"}
    rows = [
        row | differs | {"test": test, "method": method}
        for test in ("2019", "NA")
        for method in ("tokencutseg", "otsu")
    ]
    pd.DataFrame(rows).to_csv(study / "tables" / "main_results.csv", index=False)
    pd.DataFrame(rows).assign(images_seen=12).to_csv(study / "tables" / "baselines.csv", index=False)
    shutil.copy(
        study / "notebooks" / "02_masked_gpt.ipynb", study / "notebooks" / "02_masked_gpt-20260102-030405.ipynb"
    )
    page = write_index(study).read_text()
    assert "9 test images of 2019" in page and "on NA" in page and "20260102" not in page


def numbers(text):
    return [float(found.replace("−", "-")) for found in re.findall(r"[+−]?\d+(?:\.\d+)?", text.replace(",", ""))]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The page of a committed study on real images, of which some notebooks have not been executed."""
    study = tmp_path_factory.mktemp("results") / REFERENCE.name
    shutil.copytree(REFERENCE, study, ignore=shutil.ignore_patterns("runs"))
    return study, BeautifulSoup(write_index(study, find_notebooks()).read_text(), "html.parser")


def test_the_numbers_of_each_table_are_those_of_its_file(real):
    study, page = real
    compared = 0
    for details in page.select("details:has(table)"):
        table = pd.read_csv(study / details.select_one("a[href$=csv]")["href"]).head(MAX_ROWS)
        heads = [head.text for head in details.select("th")]
        rows = [[cell.text for cell in row.select("td")] for row in details.select("tbody tr")]
        assert not any("_" in head for head in heads)
        if "verdict" in table:  # those that the study decides
            table = table[table["verdict"] != "not testable here"]
        assert len(rows) == len(table) > 0
        for column in set(heads) & {"mean", "measured"}:
            shown = [numbers(row[heads.index(column)]) for row in rows]
            for estimate, expected in zip(shown, table[[column, "low", "high"]].to_numpy(), strict=True):
                assert estimate == pytest.approx(expected, abs=6e-4) or (not estimate and pd.isna(expected[0]))
                compared += 1
    assert compared > 100


def test_the_first_screen_is_that_of_the_main_results(real):
    study, page = real
    table = pd.read_csv(study / "tables/main_results.csv").query("reduction == 'per_image' and measure == 'iou'")
    own = table[table["method"] == "tokencutseg"].iloc[0]
    sentence, expected = page.select_one("header .found").text, own[["mean", "low", "high"]].tolist()
    assert numbers(sentence.partition("IoU of")[2])[:3] == pytest.approx(expected, abs=6e-4)
    differences = numbers(" ".join(re.findall(r"\((\S+ \[.+?\])", sentence)))
    first = table[(table["train"] == own["train"]) & (table["test"] == own["test"])].dropna(subset="diff")
    expected = first[["diff", "diff_low", "diff_high"]].to_numpy().ravel()
    assert sorted(differences) == pytest.approx(sorted(expected), abs=6e-4)
    assert len(page.select("header tbody tr")) == len(table)


def test_a_page_without_anything(tmp_path):
    page = write_index(tmp_path, find_notebooks()).read_text()
    assert page.count("Not executed") == 5 and "<table" not in page


def test_a_table_of_another_form_is_named(study):
    for name in ("reconstruction", "main_results", "budgets"):
        pd.DataFrame({"a": [1]}).to_csv(study / "tables" / f"{name}.csv", index=False)
    page = write_index(study).read_text()
    assert all(f"The table {name} lacks" in page for name in ("reconstruction", "main_results", "budgets"))


def test_committed_results_hold_no_weights_and_no_images():
    figures = [f"figures/{name}.{kind}" for name in SHOW_IMAGES for kind in ("pdf", "png")]
    kept_out = [*figures, "notebooks/01_a.html", "runs/a/model.safetensors", "runs/a/last.ckpt"]
    paths = [f"results/reference/study/{name}" for name in (*kept_out, "figures/budgets.png", "tables/a.csv")]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("this is no git checkout")
    assert done.stdout.splitlines() == paths[:-2]
