"""The index page, read back with a parser."""

import json

import nbformat
import numpy as np
import pandas as pd
import pytest
from page import Page
from PIL import Image

from tokencutseg.report.index import MAX_ROWS, readable, table_html, write_index


@pytest.fixture
def study(tmp_path):
    study = tmp_path / "tiny-synthetic"
    for folder in ("notebooks", "tables", "figures"):
        (study / folder).mkdir(parents=True)
    for name in ("01_vqgan_pretrain", "02_masked_gpt"):
        cells = [nbformat.v4.new_markdown_cell(f"intro\n# The story of <{name}> & more")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), study / "notebooks" / f"{name}.ipynb")
        for suffix in (".html", ".log"):
            (study / "notebooks" / (name + suffix)).touch()
    record = {"token": "x", "seconds": 12.4, "tables": ["reconstruction"], "figures": ["vqgan_curves"]}
    (study / "notebooks" / "01_vqgan_pretrain.done.json").write_text(json.dumps(record))
    pd.DataFrame({"method": ["a<b>"], "mean": [0.123456]}).to_csv(study / "tables" / "reconstruction.csv", index=False)
    (study / "tables" / "leftover.csv").write_text("n\n3\n")
    Image.new("RGB", (4, 3)).save(study / "figures" / "vqgan_curves.png")
    return study


def test_every_link_leads_somewhere(study):
    page = Page(write_index(study).read_text())
    anchors = [link for link in page.links if link.startswith("#")]
    files = [link for link in page.links if not link.startswith("#")]
    assert anchors == ["#01_vqgan_pretrain", "#02_masked_gpt"]
    assert set(files) >= {"notebooks/01_vqgan_pretrain.html", "tables/reconstruction.csv", "tables/leftover.csv"}
    images = [source for source, _ in page.images]
    assert images == ["figures/vqgan_curves.png"]
    assert all((study / link).is_file() for link in files + images)


def test_page_needs_no_network(study):
    html = write_index(study).read_text()
    assert "://" not in html and "<script" not in html
    assert "prefers-color-scheme: dark" in html


def test_titles_status_and_what_no_record_names(study, tmp_path):
    missing = tmp_path / "03_deepcut_seg.ipynb"
    nbformat.write(nbformat.v4.new_notebook(), missing)
    text = " ".join(Page(write_index(study, [missing]).read_text()).text)
    assert "The story of <01_vqgan_pretrain> & more Done in 12 s." in text
    assert "The story of <02_masked_gpt> & more Not finished" in text
    assert "03_deepcut_seg Not executed yet." in text
    assert "VQGAN curves" in text and "a<b>" in text and "0.1235" in text
    before, after = text.split("From earlier or unfinished executions")
    assert "Leftover" in after and "Reconstruction" in before and "Reconstruction" not in after


def test_a_notebook_cut_short_and_an_empty_table_do_not_stop_the_page(study):
    (study / "notebooks" / "02_masked_gpt.ipynb").write_text('{"cells": [')
    (study / "tables" / "leftover.csv").write_text("")
    text = Page(write_index(study).read_text()).text
    assert "02_masked_gpt" in text and "This table is empty." in text


def test_tables_are_named_and_their_heads_stand_over_their_columns(study):
    page = Page(write_index(study).read_text())
    assert page.tables["Reconstruction"] == [["method", "mean"], ["a<b>", "0.1235"]]
    html = table_html(pd.DataFrame({"mean": [0.54321, np.nan], "recipe": [None, "released"], "mixed": [1, "x"]}), "")
    assert html.count("number") == 3, "the head of the numbers, the number, and the dash in its column"
    assert html.count("data-value") == 3 and 'data-value="0.54321"' in html, "a rounded number and two missing values"


def test_numbers_are_rounded_and_missing_ones_are_dashes():
    frame = pd.DataFrame(
        {
            "n": [600, 2000],
            "mean": [0.8123456, np.nan],
            "large": [1234567.8, -0.00012345],
            "complete": [True, False],
            "recipe": ["released", None],
        }
    )
    assert Page(table_html(frame, "scores")).text == [
        "n",
        "mean",
        "large",
        "complete",
        "recipe",
        "600",
        "0.8123",
        "1,234,568",
        "yes",
        "released",
        "2000",
        "–",
        "-0.0001234",
        "no",
        "–",
    ]


def test_long_tables_say_that_they_are_cut():
    text = Page(table_html(pd.DataFrame({"epoch": range(MAX_ROWS + 40)}), "history")).text
    assert text[-2:] == [str(MAX_ROWS - 1), f"The first {MAX_ROWS} of {MAX_ROWS + 40} rows."]


def test_readable_shows_a_sentence_whole():
    reason = " ".join(3 * ["not clearly better: iou +0.000214 [-0.0078, 0.00789] against unet;"])
    assert reason in readable(pd.DataFrame({"reason": [reason]}))._repr_html_()


def test_readable_joins_an_estimate_and_its_interval():
    table = pd.DataFrame(
        {
            "n": [600, 7],
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
