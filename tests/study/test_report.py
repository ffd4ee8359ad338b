"""The report, read back with a parser: nothing from outside, everything of the study in it."""

import base64
import io
import itertools
import json

import nbformat
import pandas as pd
import pytest
from page import Page
from PIL import Image

from tokencutseg.cli import main
from tokencutseg.data.images import DataError
from tokencutseg.study.claims import RULE
from tokencutseg.study.outputs import CAPTIONS, OUTPUTS
from tokencutseg.study.report import write_report


def study_of(folder, iou=0.75, verdict="not supported"):
    for name in ("notebooks", "tables", "figures", "runs/vqgan-1"):
        (folder / name).mkdir(parents=True)
    parameters = {"preset": "small", "recipe": "revised", "seed": 3, "data": "/home/x", "overrides": {"a.b": True}}
    notebook = nbformat.v4.new_notebook(metadata={"papermill": {"parameters": parameters}})
    nbformat.write(notebook, folder / "notebooks" / "04_eval_cross_dataset.ipynb")
    (folder / "notebooks" / "04_eval_cross_dataset.done.json").write_text(json.dumps({"seconds": 61.2}))
    (folder / "runs/vqgan-1/environment.json").write_text(json.dumps({"torch": "2.99", "gpu": None}))
    pd.DataFrame({"claim": ["mIoU <b> is 81%", "robust"], "definition": ["pooled_two_class", None],
                  "published": [0.81, None], "measured": [iou, None], "low": [iou - 0.01, None],
                  "high": [iou + 0.01, None], "verdict": [verdict, "not testable here"],
                  "reason": ["above", "no measure"]}).to_csv(folder / "tables/claims.csv", index=False)
    pd.DataFrame({"train": "skin", "test": ["skin", "scalp"], "method": "tokencutseg", "recipe": "revised",
                  "definition": ["image_lesion", "pooled_two_class"], "measure": "iou", "n": [20, 0],
                  "mean": [iou, None], "low": [iou - 0.02, None], "high": [iou + 0.02, None],
                  "published": [None, 0.8], "note": ["skin train partial: 5 of 9", "data not available"]}
                 ).to_csv(folder / "tables/main_results.csv", index=False)
    Image.new("RGB", (40, 30)).save(folder / "figures/predictions.png")
    return folder


def test_one_study(tmp_path):
    study = study_of(tmp_path / "small-skin")
    path = write_report([study])
    html = path.read_text()
    page = Page(html)
    assert path == study / "report.html" and "http" not in html.replace("http-equiv", "")
    assert page.tables["Claims and verdicts"][1:] == [
        ["mIoU <b> is 81%", "pooled_two_class", "0.81", "0.750 [0.740, 0.760]", "not supported", "above"],
        ["robust", "–", "–", "–", "not testable here", "no measure"]]
    assert RULE[:40] in html and "1 not supported, 1 not testable here" in html
    head, home, away = page.tables["Results"]
    assert dict(zip(head, home, strict=True)) == {
        "train → test": "skin → skin", "method": "tokencutseg", "recipe": "revised", "images": "20",
        "lesion IoU per image": "0.750 [0.730, 0.770]", "lesion Dice per image": "–",
        "IoU as the released code scores": "–", "published": "–"}
    assert away[-1] == "0.8" and away[4] == "–"
    assert "skin train partial: 5 of 9" in html and "data not available" in html
    (source, text), = page.images
    assert Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))).size == (40, 30)
    assert CAPTIONS["predictions"].split(",")[0] in text
    assert "./run_all.sh --preset small --recipe revised --seed 3 --data DIR --set a.b=true" in html
    assert "/home/x" not in html and "2.99" in html
    linked = [link for link in page.links if not link.startswith("#")]
    assert linked == ["notebooks/04_eval_cross_dataset.html"]
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_two_studies_side_by_side(tmp_path):
    studies = [study_of(tmp_path / "one"), study_of(tmp_path / "two", 0.85, "supported")]
    page = Page(write_report(studies, tmp_path / "out" / "both.html").read_text())
    head, first, _ = page.tables["Claims and verdicts"]
    assert head[3:] == ["measured (one)", "verdict (one)", "measured (two)", "verdict (two)"]
    assert first[4] == "not supported" and first[6] == "supported"
    assert page.tables["Results"][1][4:6] == ["0.750 [0.730, 0.770]", "0.850 [0.830, 0.870]"]
    assert len(page.images) == 2
    assert "../one/notebooks/04_eval_cross_dataset.html" in page.links
    levels = [level for level, _ in page.headings]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_an_empty_table_is_said_to_be_empty(tmp_path):
    study = study_of(tmp_path / "one")
    (study / "tables" / "leftover.csv").write_text("")
    text = Page(write_report([study]).read_text()).text
    assert text[text.index("Leftover") + 1] == "This table is empty."


def test_every_figure_has_a_caption():
    assert set(CAPTIONS) == {name for outputs in OUTPUTS.values() for name in outputs.figures}


def test_a_folder_without_a_study_is_one_sentence(tmp_path, capsys):
    with pytest.raises(DataError, match="holds no tables"):
        write_report([tmp_path])
    assert main(["report", str(tmp_path)]) != 0
    assert "holds no tables" in capsys.readouterr().err
    assert main(["report", "a", "b", "c"]) == 2
