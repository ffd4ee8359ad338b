"""The command line: what it prints, writes and returns."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import tokencutseg
from tokencutseg.cli import main
from tokencutseg.models.checkpoint import PRETRAINED
from tokencutseg.report import notebooks as runner

PARAMETERS = (
    'preset: str = "quick"\nrecipe: str = "revised"\nseed: int = 0\ndata: str = ""\nresults: str = ""\n'
    "overrides: dict = {}"
)
FINISH = """
import json, os, pathlib
pathlib.Path(os.environ["TOKENCUTSEG_RECORD"]).write_text(json.dumps(
    {"token": os.environ["TOKENCUTSEG_RUN_TOKEN"], "seconds": 1.0, "tables": [], "figures": [],
     "seen": [preset, recipe, seed, data, results, overrides]}))"""


@pytest.fixture
def notebooks(tmp_path):
    """A folder with two notebooks: one that finishes and one that fails."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name, code in (("01_good", FINISH), ("02_bad", "1 / 0")):
        tagged = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        notebook = nbformat.v4.new_notebook(
            cells=[tagged, nbformat.v4.new_code_cell(code)],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder


def run(*arguments):
    """main()'s exit status; argparse's own exits count too."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as leave:
        return leave.code


# help and usage -----------------------------------------------------------------------------------------------------


def test_help_is_instant():
    """It lists every option and imports nothing heavy."""
    code = (
        "import sys, tokencutseg.cli as cli\ntry:\n    cli.main(['run', '-h'])\n"
        "finally:\n    print({'torch', 'numpy', 'papermill', 'pandas'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.endswith("\nset()\n")
    for option in ("--preset", "--recipe", "--data", "--results", "--only", "--jobs", "--seed", "--set", "--dry-run"):
        assert option in shown.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "--set", "vqgan.d_model=3"], "Did you mean 'vqgan.codebook_size'?"),
        (["run", "--set", "vqgan.codebook_size"], "--set takes stage.key=value, not 'vqgan.codebook_size'"),
        (["run", "--set", "vqgan.codebook_size=many"], "vqgan.codebook_size must be of type int"),
        (["run", "--only", "01,99"], "no notebook '99'. Known: 01_good, 02_bad"),
        (["run", "--data", "nowhere"], "nowhere does not exist"),
        (["run", "--jobs", "0"], "must be 1 or more"),
        (["run", "--seed", "-1"], "must lie in 0"),
        (["run", "--preset", "huge"], "invalid choice: 'huge'"),
        (["run", "--result", "elsewhere"], "unrecognized arguments"),
        (["fetch", "isic2015"], "isic2015"),
        (["audit", "--data", "nowhere"], "nowhere does not exist"),
        (["segment", "a.png", "--model", "nowhere", "--out", "out"], "--model nowhere does not exist"),
        ([], "COMMAND"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(arguments, words, notebooks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = ["--notebooks", notebooks] if arguments[:1] == ["run"] else []
    assert run(*arguments, *more) == 2
    shown = capsys.readouterr()
    assert words in shown.err and "error: " in shown.err and "Traceback" not in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["notebooks"], "nothing may have been started"


# run ----------------------------------------------------------------------------------------------------------------


def test_run_executes_all_and_reports_the_failed_one(notebooks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        run(
            "run",
            "--preset",
            "tiny",
            "--seed",
            4,
            "--notebooks",
            "notebooks",
            "--only",
            "01",
            "--only",
            "02,01",
            "--jobs",
            2,
            "--set",
            "vqgan.codebook_size=8",
            "ablation.codebook_sizes=4,8",
        )
        == 1
    )
    shown = capsys.readouterr()
    assert "02_bad: FAILED, cell In [3]: ZeroDivisionError: division by zero" in shown.err
    (study,) = (tmp_path / "results").iterdir()
    assert study.name.startswith("tiny-synthetic-seed4-set-")
    assert f"1 of 2 notebooks done: {study / 'index.html'}" in shown.out
    # kernels run in another folder, so the path that they are given must be absolute
    assert json.loads((study / "notebooks" / "01_good.done.json").read_text())["seen"] == [
        "tiny",
        "revised",
        4,
        "",
        str(tmp_path / "results"),
        {"vqgan.codebook_size": 8, "ablation.codebook_sizes": [4, 8]},
    ]
    assert "Not finished" in (study / "index.html").read_text()


def test_run_of_what_succeeds_is_status_0(notebooks, tmp_path, monkeypatch, capsys):
    executed = []

    def run_study(chosen, parameters, study, jobs, timeout, again):
        executed.append(([path.stem for path in chosen], jobs, timeout, again))
        study.mkdir(parents=True, exist_ok=True)
        return [runner.Outcome(path.stem, None, 1.0) for path in chosen]

    monkeypatch.setattr(runner, "run_study", run_study)
    assert run("run", "--notebooks", notebooks, "--only", "01", "--results", tmp_path / "out", "--timeout", 9) == 0
    assert executed == [(["01_good"], 1, 9, False)]
    assert "1 of 1 notebooks done" in capsys.readouterr().out
    assert (
        run(
            "run",
            "--notebooks",
            notebooks,
            "--only",
            "01",
            "--results",
            tmp_path / "out",
            "--preset",
            "tiny",
            "--again",
        )
        == 0
    )
    assert executed[1] == (["01_good"], 2, runner.CELL_TIMEOUT, True)


def test_results_below_a_file_is_bad_usage(notebooks, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert run("run", "--preset", "tiny", "--notebooks", notebooks, "--results", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(notebooks, monkeypatch):
    monkeypatch.setattr(runner, "find_notebooks", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("run", "--notebooks", notebooks)


def test_interruption_is_status_130(notebooks, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_study", interrupted)
    assert run("run", "--notebooks", notebooks, "--results", tmp_path / "out") == 130
    assert "interrupted" in capsys.readouterr().err


def test_dry_run_shows_the_plan_and_writes_nothing(notebooks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder, mode, count in (("train", "RGB", 5), ("val", "RGB", 2), ("test", "RGB", 3)):
        for kind in ("images", "masks"):
            (tmp_path / "clinic" / folder / kind).mkdir(parents=True)
            for i in range(count):
                Image.new(mode, (8, 6), i).save(tmp_path / "clinic" / folder / kind / f"{folder}{i}.png")
    before = sorted(tmp_path.rglob("*"))
    assert (
        run(
            "run",
            "--preset",
            "tiny",
            "--recipe",
            "released",
            "--notebooks",
            notebooks,
            "--data",
            "clinic",
            "--set",
            "vqgan.codebook_size=8",
            "--dry-run",
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert "tiny-clinic-released-set-" in shown and "vqgan.codebook_size = 8" in shown
    assert "clinic/train: 5" in shown and "clinic/test: 3" in shown
    assert "01_good.ipynb" in shown and "02_bad.ipynb" in shown and str(tmp_path / "clinic") in shown
    assert run("run", "--preset", "tiny", "--notebooks", notebooks, "--dry-run") == 0
    assert "each 24 train, 8 validation, 12 test" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


# fetch and audit ----------------------------------------------------------------------------------------------------


def test_audit_names_an_image_that_two_splits_share(tmp_path, capsys):
    draw = np.random.default_rng(0)
    shared = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for folder in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (tmp_path / "clinic" / folder / kind).mkdir(parents=True)
        for i in range(3):
            pixels = shared if i == 0 and folder != "val" else draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "clinic" / folder / "images" / f"{folder}{i}.png")
            Image.new("L", (64, 64), 255).save(tmp_path / "clinic" / folder / "masks" / f"{folder}{i}.png")
    assert run("audit", "--data", tmp_path / "clinic", "--out", tmp_path / "audit") == 0
    assert len(pd.read_csv(tmp_path / "audit/overlaps.csv")) >= 1
    assert (tmp_path / "audit/contact_sheet.png").stat().st_size > 1000
    shown = capsys.readouterr().out
    assert any("train0" in line and "test0" in line for line in shown.splitlines())
    assert "self-supervised stages use 2 images; left out are 1" in shown
    assert "1 same pixels as in clinic/test" in shown


def test_fetch_goes_on_after_a_failed_set(tmp_path, monkeypatch, capsys):
    from tokencutseg.data import download
    from tokencutseg.data.images import DataError

    def fetch(name, root):
        if name == "isic2016":
            raise DataError("no network")
        return root / name

    monkeypatch.setattr(download, "fetch", fetch)
    assert run("fetch", "isic2016", "isic2017", "--data", tmp_path) == 1
    shown = capsys.readouterr()
    assert "error: no network" in shown.err and f"isic2017 is in {tmp_path / 'isic2017'}" in shown.out
    assert run("fetch", "isic2017", "--data", tmp_path) == 0


# segment ------------------------------------------------------------------------------------------------------------


class RedIsLesion:
    """A segmenter whose right answer is plain to see."""

    def predict(self, image):
        return image[..., 0] > 127


@pytest.fixture
def model(tmp_path, monkeypatch):
    path = tmp_path / "run"
    path.mkdir()
    opened = []
    monkeypatch.setattr(tokencutseg, "load", lambda given: opened.append(given) or RedIsLesion(), raising=False)
    yield path
    assert opened in ([], [path]), "the model is opened once, however many images there are"


def image_with_lesion(path: Path, height=40, width=60) -> np.ndarray:
    """Save a black image with a red box and return the box as bool (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lesion = np.zeros((height, width), bool)
    lesion[10:30, 15:50] = True
    Image.fromarray(np.stack([lesion * 200, lesion * 0, lesion * 0], -1).astype(np.uint8)).save(path)
    return lesion


def test_segment_writes_masks_and_overlays(model, tmp_path, capsys):
    lesion = image_with_lesion(tmp_path / "a.png")
    assert run("segment", tmp_path / "a.png", "--model", model, "--out", tmp_path / "out") == 0
    mask = np.array(Image.open(tmp_path / "out" / "a_mask.png"))
    assert mask.dtype == np.uint8 and np.array_equal(mask, lesion * np.uint8(255))
    overlay, image = (np.array(Image.open(path)) for path in (tmp_path / "out" / "a_overlay.png", tmp_path / "a.png"))
    changed = (overlay != image).any(-1)
    inside = np.zeros_like(lesion)
    inside[11:29, 16:49] = True
    assert np.array_equal(changed, lesion & ~inside), "the outline, one pixel wide, and nothing else"
    assert f"{tmp_path / 'a.png'} -> {tmp_path / 'out' / 'a_mask.png'}" in capsys.readouterr().out


def test_segment_without_a_model_takes_the_one_that_comes_with_the_package(tmp_path, capsys):
    y, x = np.mgrid[:90, :120]
    skin = np.full((90, 120, 3), (222, 176, 155), np.uint8)
    lesion = ((y - 45) / 22) ** 2 + ((x - 60) / 30) ** 2 < 1
    skin[lesion] = (98, 58, 44)
    Image.fromarray(skin).resize((480, 360)).save(tmp_path / "a.png")
    assert run("segment", tmp_path / "a.png", "--out", tmp_path / "out") == 0
    mask = np.array(Image.open(tmp_path / "out" / "a_mask.png").resize((120, 90))) > 0
    assert (mask & lesion).sum() / (mask | lesion).sum() > 0.7, "a dark ellipse on light skin is an easy lesion"
    files = list(PRETRAINED.iterdir())
    assert sum(file.stat().st_size for file in files) < 8 * 2**20
    assert {"README.md", "config.json", "model.safetensors"} == {file.name for file in files}
    config = tokencutseg.load().config
    assert config.recipe == "revised" and config.data.image_size == 128


def test_segment_takes_folders_and_patterns_each_image_once(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/x.png", "two/x.png", "two/X.bmp", "two/x-2.png", "two/y_superpixels.png", "two/z.txt"):
        image_with_lesion(Path(name)) if not name.endswith("txt") else Path(name).write_text("no image")
    assert run("segment", "one/x.png", "two", "*/x.png", "--model", model, "--out", "out") == 0
    masks = sorted(path.name for path in Path("out").glob("*_mask.png"))
    assert len(masks) == 4 and len({name.lower() for name in masks}) == 4
    assert "x_mask.png" in masks and not any("superpixels" in name for name in masks)


def test_segment_names_each_bad_image_and_writes_the_others(model, tmp_path, capsys):
    image_with_lesion(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "empty").mkdir()
    assert (
        run(
            "segment",
            tmp_path / "in",
            tmp_path / "gone.jpg",
            tmp_path / "empty",
            tmp_path / "*.tif",
            "--model",
            model,
            "--out",
            tmp_path / "out",
        )
        == 1
    )
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") for line in errors)
    for name in ("bad.png", "gone.jpg", "empty", "*.tif"):
        assert sum(name in line for line in errors) == 1
    assert (tmp_path / "out" / "good_mask.png").exists()


def test_segment_does_not_write_beside_its_images(model, tmp_path, capsys):
    image_with_lesion(tmp_path / "a.png")
    (tmp_path / "a_mask.png").write_text("an expert drew this")
    assert run("segment", tmp_path / "a.png", "--model", model, "--out", tmp_path) == 2
    assert "--out must be another folder" in capsys.readouterr().err
    assert (tmp_path / "a_mask.png").read_text() == "an expert drew this"


def test_segment_replaces_its_own_masks_and_no_others(model, tmp_path, capsys):
    image_with_lesion(tmp_path / "in" / "a.png")
    command = ["segment", tmp_path / "in", "--model", model, "--out", tmp_path / "masks"]
    (tmp_path / "masks").mkdir()
    for kind in ("mask", "overlay"):
        (tmp_path / "masks" / f"a_{kind}.png").write_text("from an earlier call")
    assert run(*command) == 0
    assert Image.open(tmp_path / "masks" / "a_mask.png").mode == "L"
    (tmp_path / "masks" / "a_overlay.png").unlink()
    (tmp_path / "masks" / "a_mask.png").write_text("an expert drew this")
    assert run(*command) == 2
    assert "a_mask.png is there already and not from an earlier call" in capsys.readouterr().err
    assert (tmp_path / "masks" / "a_mask.png").read_text() == "an expert drew this"


def test_segment_into_a_file_is_bad_usage(model, tmp_path, capsys):
    image_with_lesion(tmp_path / "in" / "a.png")
    (tmp_path / "file").touch()
    assert run("segment", tmp_path / "in", "--model", model, "--out", tmp_path / "file") == 2
    assert "choose another folder with --out" in capsys.readouterr().err


def test_a_folder_without_the_explorer_is_named(tmp_path, capsys):
    assert main(["explore", "--notebooks", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no explorer.ipynb" in capsys.readouterr().err
