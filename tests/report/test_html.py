"""The HTML of an executed notebook: formulas as MathML, nothing to fetch, no paths of one machine."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tokencutseg.report.html import write_html

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
MATHML = "{http://www.w3.org/1998/Math/MathML}"


def written(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path / "own.ipynb")
    write_html(path / "own.ipynb")
    return (path / "own.html").read_text()


def formulas(page):
    return [ElementTree.fromstring(found) for found in re.findall(r"<math.*?</math>", page, re.DOTALL)]


def test_formulas_are_mathml(tmp_path):
    text = "With $d_i$ neighbours, and `a $literal$` one:\n\n$$\\frac{a}{b}$$\n\n| symbol |\n|---|\n| $x$ |\n\nthe end."
    page = written(tmp_path, new_markdown_cell(text))
    inline, block, in_table = formulas(page)
    assert inline.get("display") == "inline" and [part.text for part in inline.iter(MATHML + "mi")] == ["d", "i"]
    assert block.get("display") == "block" and len(block.findall(f".//{MATHML}mfrac")) == 1
    assert [part.text for part in in_table.iter(MATHML + "mi")] == ["x"]
    assert "<code>a $literal$</code>" in page


def test_bold_letters_are_told_from_plain_ones_and_names_keep_no_backslash(tmp_path):
    page = written(tmp_path, new_markdown_cell(r"$\mathbf S^\top \mathbf 1$, $S$ and $\texttt{n\_head}$"))
    bold, plain, name = ("".join(formula.itertext()) for formula in formulas(page))
    assert (bold, plain, name) == ("\U0001d412\u22a4\U0001d7cf", "S", "n_head")


def test_code_keeps_its_dollars_and_parameters_are_left_out(tmp_path):
    injected = new_code_cell('results = "/home/somebody"', metadata={"tags": ["injected-parameters"]})
    page = written(tmp_path, new_code_cell("'$x$'"), injected, new_markdown_cell("```\n$y$ $$z$$\n```"))
    assert formulas(page) == [] and "$x$" in page and "$y$ $$z$$" in page
    assert "somebody" not in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_the_notebooks_is_drawn_and_nothing_fetched(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    page = written(tmp_path, *notebook.cells)
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=[\"']?https?:|from ['\"]https?:", page)
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(formulas(page)) == len(re.findall(r"\$\$.+?\$\$|\$[^$\n]+\$", text, re.DOTALL))
    assert not re.search(r"<merror|\\[a-z]+", " ".join(re.findall(r"<math.*?</math>", page, re.DOTALL)))
    folded = re.findall(r"<details><summary [^>]*>Solution, computed</summary>\s*<div[^>]*jp-CodeCell", page)
    assert len(folded) == sum("solution" in cell.metadata.get("tags", []) for cell in notebook.cells)
