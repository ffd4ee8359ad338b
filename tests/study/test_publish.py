"""`tokencutseg publish`: what of a study can be passed on."""

import json

import pandas as pd
import pytest

from tokencutseg.cli import main
from tokencutseg.config import Config
from tokencutseg.study.outputs import OUTPUTS, SHOW_IMAGES
from tokencutseg.study.publish import publish
from tokencutseg.study.store import Run
from tokencutseg.study.study import Study
from tokencutseg.study.tables import main_results


@pytest.fixture(scope="module")
def published(tiny_study, tmp_path_factory):
    target = tmp_path_factory.mktemp("published")
    assert main(["publish", str(tiny_study), str(target / "results" / tiny_study.name)]) == 0
    return target / "results" / tiny_study.name


def test_neither_images_nor_weights_are_passed_on(published):
    assert {path.suffix for path in published.rglob("*") if path.is_file()} == {".csv", ".json", ".png", ".pdf"}
    every = {name for outputs in OUTPUTS.values() for name in outputs.figures}
    assert every > SHOW_IMAGES
    assert {path.stem for path in (published / "figures").iterdir()} == every - SHOW_IMAGES
    tables = {name for outputs in OUTPUTS.values() for name in outputs.tables}
    assert {path.stem for path in (published / "tables").iterdir()} == tables


def test_settings_and_trainings_are_those_of_the_study(published, tiny_study):
    study = Study.open("tiny", results=str(tiny_study.parent))
    assert Config.from_dict(json.loads((published / "config.json").read_text())) == study.config
    runs = {path.name for path in (tiny_study / "runs").iterdir()}
    assert {path.name for path in (published / "runs").iterdir()} == runs > {"otsu"}
    for name in runs - {"otsu"}:
        ours, theirs = Run(published / "runs" / name), Run(tiny_study / "runs" / name)
        assert ours.done and (ours.about, ours.metrics) == (theirs.about, theirs.metrics)
        pd.testing.assert_frame_equal(ours.history, theirs.history)


def test_the_trainings_give_the_tables_again(published, tiny_study):
    again = main_results(Study.open("tiny", results=str(published.parent)))
    pd.testing.assert_frame_equal(again.fillna(""), pd.read_csv(tiny_study / "tables/main_results.csv").fillna(""),
                                  check_dtype=False)
    assert not list(published.rglob("*.safetensors")), "nothing was trained"


def test_an_unfinished_training_stays_behind(tmp_path):
    study = tmp_path / "study"
    (study / "tables").mkdir(parents=True)
    (study / "tables/stages.csv").write_text("iou\n0.5\n")
    (study / "runs/segmentation-1").mkdir(parents=True)
    (study / "runs/segmentation-1/config.json").write_text("{}")
    assert publish(study, tmp_path / "out") == [tmp_path / "out/tables/stages.csv"]
    assert not (tmp_path / "out/runs").exists()


def test_bad_usage(tmp_path, capsys):
    (tmp_path / "study/tables").mkdir(parents=True)
    assert main(["publish", str(tmp_path / "study"), str(tmp_path / "out")]) == 2
    assert "study holds no tables of a study" in capsys.readouterr().err
    (tmp_path / "study/tables/stages.csv").write_text("iou\n0.5\n")
    assert main(["publish", str(tmp_path / "study"), str(tmp_path / "study")]) == 2
    assert "is the study itself; choose another folder" in capsys.readouterr().err
