"""The index page, and tables as text."""

import json
import re
import subprocess

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tokencutseg.files import CHECKOUT
from tokencutseg.report.index import MAX_ROWS, SHOW_IMAGES, readable, write_index


@pytest.fixture
def study(tmp_path):
    """Two executed notebooks, of which the first has succeeded; one table and one figure of its own, one table left."""
    study = tmp_path / "tiny-synthetic"
    for folder in ("notebooks", "tables", "figures"):
        (study / folder).mkdir(parents=True)
    code = {
        "01_vqgan_pretrain": 'study.table("reconstruction", x)\nstudy.figure("vqgan_curves", y)',
        "02_masked_gpt": "",
    }
    for name, source in code.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, study / "notebooks" / f"{name}.ipynb")
        for suffix in (".html", ".log"):
            (study / "notebooks" / (name + suffix)).touch()
    (study / "notebooks" / "01_vqgan_pretrain.done.json").write_text('{"key": "x", "seconds": 12}')
    (study / "config.json").write_text(json.dumps({"preset": "tiny", "recipe": "revised", "seed": 0}))
    pd.DataFrame({"method": ["a<b>"], "mean": [0.123456]}).to_csv(study / "tables" / "reconstruction.csv", index=False)
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
    nbformat.write(nbformat.v4.new_notebook(), missing)
    page = write_index(study, [missing]).read_text()
    first, second, third, further = re.split("<h2", page)[1:]
    assert "Done in 12 s." in first and "vqgan_curves" in first and "reconstruction" in first
    assert "Not finished" in second and "Not executed yet." in third
    assert "leftover" in further and f"the first {MAX_ROWS} of {MAX_ROWS + 40} rows" in further
    assert "preset tiny · recipe revised · seed 0" in page


def test_tables_keep_their_content(study):
    reconstruction, leftover = re.findall("<table.*?</table>", write_index(study).read_text(), re.DOTALL)
    assert re.findall("<t[hd]>(.*?)</t[hd]>", reconstruction) == ["method", "mean", "a&lt;b&gt;", "0.1235"]
    assert re.findall("<td>(.*?)</td>", leftover) == [str(i) for i in range(MAX_ROWS)]


def test_readable_shows_a_sentence_whole():
    reason = " ".join(3 * ["not significantly better: iou +0.000214 [-0.0078, 0.00789] against unet;"])
    assert reason in readable(pd.DataFrame({"reason": [reason]}))._repr_html_()


def test_readable_joins_an_estimate_and_its_interval():
    table = pd.DataFrame(
        {
            "n": [600, 7],
            "large": [1234567.8, -0.00012345],
            "complete": [True, False],
            "mean": [0.73712, np.nan],
            "difference": [-0.01, 0.5],
            "low": [-0.02, np.nan],
            "high": [0.004, np.nan],
            "diff": [0.1, 0.2],
            "diff_low": [0.05, 0.1],
            "diff_high": [0.15, 0.3],
            "seed_low": [0.7, 0.8],
            "p": [0.0048378, np.nan],
        },
        index=[4, 2],
    )
    expected = pd.DataFrame(
        {
            "n": ["600", "7"],
            "large": ["1,234,568", "-0.0001234"],
            "complete": ["yes", "no"],
            "mean": ["0.7371", "–"],
            "difference": ["-0.010 [-0.020, 0.004]", "0.5"],
            "diff": ["0.100 [0.050, 0.150]", "0.200 [0.100, 0.300]"],
            "seed_low": ["0.7", "0.8"],
            "p": ["0.004838", "–"],
        },
        index=[4, 2],
    )
    pd.testing.assert_frame_equal(readable(table), expected)


def test_committed_results_hold_no_weights_and_no_images():
    figures = [f"figures/{name}.{kind}" for name in SHOW_IMAGES for kind in ("pdf", "png")]
    kept_out = [*figures, "notebooks/01_a.html", "runs/a/model.safetensors", "runs/a/last.ckpt"]
    paths = [f"results/reference/study/{name}" for name in (*kept_out, "figures/budgets.png", "tables/a.csv")]
    done = subprocess.run(["git", "check-ignore", *paths], cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("this is no git checkout")
    assert done.stdout.splitlines() == paths[:-2]
