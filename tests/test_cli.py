"""The command line: what it prints, writes and returns."""

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import run
from PIL import Image

import tokencutseg
from tokencutseg import __main__, cli, cli_explore
from tokencutseg.config import RECIPES
from tokencutseg.report import notebooks as runner

PARAMETERS = 'preset = "quick"\nrecipe = "revised"\nseed = 0\ndata = ""\nresults = ""\noverrides = {}'


@pytest.fixture
def notebooks(write_notebook, tmp_path):
    """A folder with two notebooks."""
    for name in ("01_good", "02_bad"):
        write_notebook(tmp_path / "notebooks", name, parameters=PARAMETERS)
    return tmp_path / "notebooks"


def own_data(folder, shared=False):
    """5 training, 2 validation and 3 test images with masks; `shared`: the first of training and test are the same."""
    draw = np.random.default_rng(0)
    same = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            pixels = same if shared and i == 0 and split != "val" else pixels
            Image.fromarray(pixels).save(folder / split / "images" / f"{split}{i}.png")
            Image.new("L", (64, 64), 255).save(folder / split / "masks" / f"{split}{i}.png")
    return folder


# help and usage -----------------------------------------------------------------------------------------------------


def test_help_is_instant():
    """It imports nothing heavy, and waiting threads are passive before torch is imported."""
    code = (
        "import os, sys, tokencutseg.cli as cli\ntry:\n    cli.main(['run', '-h'])\n"
        "finally:\n    print({'torch', 'numpy', 'papermill'} & set(sys.modules), os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert shown.returncode == 0 and shown.stdout.endswith("\nset() passive\n")


def test_without_a_command_it_lists_them_by_group(capsys):
    assert run() == 0
    shown = capsys.readouterr().out
    for group, commands in cli.COMMANDS.items():
        assert f"{group}:" in shown and all(f"  tokencutseg {name}" in shown for name in commands)
    for name in (name for commands in cli.COMMANDS.values() for name in commands):
        assert run(name, "-h") == 0
    assert run("--version") == 0 and tokencutseg.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--set", "vqgan.codebook=3"], "Did you mean 'vqgan.codebook_size'?"),
        (["run", "--set", "vqgan.codebook_size"], "--set takes stage.key=value, not 'vqgan.codebook_size'"),
        (["run", "--set", "evaluation.rivals=otsu,net"], "evaluation.rivals names 'net'"),
        (["run", "--set", "evaluation.trained_once=relased"], "evaluation.trained_once names 'relased'"),
        (["run", "--set", "evaluation.left_out=otsu/elsewhere"], "evaluation.left_out names 'otsu/elsewhere'"),
        (["run", "--set", "evaluation.left_out=revised/site_a"], "evaluation.left_out names 'revised/site_a'"),
        (["run", "--set", "evaluation.rivals="], "evaluation.rivals names no other method"),
        (["run", "--set", "ablation.label_methods=revised"], "ablation.label_methods names no other method"),
        (["run", "--dry-run", "--set", "ablation.label_fractions=2"], "data.label_fraction"),
        (["run", "--dry-run", "--set", "ablation.graph_radii="], "the table graph_radius would have no row"),
        (["run", "--dry-run", "--set", "ablation.steps=vqgan.perceptual"], "ablation.steps names vqgan.perceptual"),
        (["run", "--dry-run", "--set", "data.synthetic_validation=0"], "data.synthetic_validation"),
        (["run", "--only", "01", "--num-nodes", "2"], "--only takes no"),
        (["run", "--only", "01,99"], "no notebook '99'. Known: 01_good, 02_bad"),
        (["run", "--only", "01", "--table", "budgets"], "not allowed with"),
        (["run", "--only", "01", "--precision", "32"], "--only takes no --dask, --gpus, --num-nodes or --precision"),
        (["run", "--preset", "tiny", "--table", "budgets,stage"], "unknown table 'stage'. Known: "),
        (["run", "--data", "nowhere"], "nowhere does not exist"),
        (["run", "--results", "r\udcff"], "which is not UTF-8"),
        (["run", "--jobs", "0"], "--jobs: must lie in 1"),
        (["run", "--jobs", "two"], "--jobs: must be a whole number"),
        (["run", "--seed", "-1"], "--seed: must lie in 0"),
        (["run", "--gpus", "-3"], "--gpus: must lie in 0"),
        (["run", "--num-nodes", "0"], "--num-nodes: must lie in 1"),
        (["run", "--result", "elsewhere"], "unrecognized arguments"),
        (["audit", "--data", "nowhere"], "nowhere does not exist"),
        (["explore", "--notebooks", "."], "holds no explorer*.ipynb"),
        (["explore", "--port", "99999"], "--port: must lie in 1 … 65535"),
        (["explore", "06"], "holds no 06*.ipynb"),
        (["explore", "--model", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(arguments, message, notebooks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = ["--notebooks", notebooks] if arguments[0] == "run" else []
    assert run(*arguments, *more) == 2
    shown = capsys.readouterr()
    assert message in shown.err and "error: " in shown.err and "Traceback" not in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["notebooks"], "nothing may have been started"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--data", "round", "--dry-run"],
        ["run", "--results", "round"],
        ["audit", "--data", "round"],
        ["explore", "--model", "round"],
        ["segment", "round", "--out", "out"],
    ],
)
def test_links_that_go_round_in_circles(arguments, notebooks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("round").symlink_to("round")
    assert run(*arguments, *(["--notebooks", notebooks] if arguments[0] == "run" else [])) in (1, 2)
    shown = capsys.readouterr().err
    assert "error: " in shown and "round" in shown and "Traceback" not in shown


def test_ctrl_c_while_modules_are_imported(monkeypatch, capsys):
    class Interrupting:
        @staticmethod
        def find_spec(name, *_):
            if name == "tokencutseg.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "tokencutseg.cli")
    monkeypatch.delattr(tokencutseg, "cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting, *sys.meta_path])
    assert __main__.main() == 130 and "interrupted" in capsys.readouterr().err


def test_a_current_folder_that_was_removed(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"rmdir {gone} && {sys.executable} -m tokencutseg segment a.png --out out"
    environment = os.environ | {"PYTHONPATH": str(Path(tokencutseg.__file__).parents[1])}
    done = subprocess.run(["sh", "-c", command], cwd=gone, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and re.fullmatch("error: .*folder.*\n", done.stderr)


def test_names_that_cannot_be_printed(tmp_path, monkeypatch):
    """A file's name that is not UTF-8, and a terminal without umlauts, give an escape instead of a traceback."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfc.png")).write_bytes(b"no image")
    for encoding in ("utf-8", "ascii"):
        for name in ("stdout", "stderr"):  # strict, so that what cannot be encoded is an error
            monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding, write_through=True))
        assert run("segment", tmp_path, "--out", tmp_path / "für") == 1
        shown = sys.stderr.buffer.getvalue().decode(encoding)
        assert "\\udcff" in shown and "Traceback" not in shown


def test_errors_of_the_system(notebooks, tmp_path, monkeypatch, capsys):
    """Those about a path that was given, and a full disk, are one sentence; others are defects."""

    def fail(error):
        monkeypatch.setattr(runner, "find_notebooks", lambda *_: (_ for _ in ()).throw(error))
        return run("run", "--notebooks", notebooks, "--results", tmp_path / "out")

    assert fail(PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "out" / "x.csv"))) == 2
    assert f"error: {tmp_path / 'out' / 'x.csv'}: Permission denied" in capsys.readouterr().err
    assert fail(OSError(errno.ENOSPC, "the disk is full")) == 1
    assert "error: the disk is full" in capsys.readouterr().err
    assert fail(KeyboardInterrupt()) == 130
    assert "interrupted" in capsys.readouterr().err
    for error in (FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/x"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            fail(error)


def test_without_checkout_or_extra(monkeypatch, capsys):
    """An installed wheel says in one sentence what it lacks."""
    monkeypatch.setattr(runner, "CHECKOUT", None)
    monkeypatch.setattr(cli_explore, "CHECKOUT", None)
    for command in ("run", "explore"):
        assert run(command) == 2
        assert "clone the repository" in capsys.readouterr().err
    monkeypatch.setattr(cli_explore.importlib.util, "find_spec", lambda _: None)
    for command in ("run", "explore"):
        assert run(command) == 2
        assert "pip install 'tokencutseg[notebooks]'" in capsys.readouterr().err


# run ----------------------------------------------------------------------------------------------------------------


def test_run_passes_its_options_on(notebooks, tmp_path, monkeypatch, capsys):
    """As absolute paths, for kernels run in another folder."""
    executed = []

    def run_notebooks(chosen, parameters, study, *options):
        executed.append(([path.stem for path in chosen], parameters, *options))
        study.mkdir(parents=True, exist_ok=True)
        return {path.stem: "division by zero" if path.stem == "02_bad" else None for path in chosen}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "run_notebooks", run_notebooks)
    data = own_data(tmp_path / "clinic")
    options = ["--notebooks", "notebooks", "--results", "out", "--only", "01"]
    changes = ["vqgan.codebook_size=8", "ablation.codebook_sizes=4,8"]
    assert run("run", *options, "--timeout", 9, "--preset", "quick", "--seed", 4, "--set", *changes) == 0
    assert "1 of 1 notebooks done" in capsys.readouterr().out
    assert run("run", *options, "--preset", "tiny", "--again", "--data", "clinic", "--only", "02,01") == 1
    (study,) = (tmp_path / "out").glob("tiny-*")
    assert f"1 of 2 notebooks done: {study / 'index.html'}" in capsys.readouterr().out
    shared = {"recipe": "revised", "results": str(tmp_path / "out")}
    overrides = {"vqgan.codebook_size": 8, "ablation.codebook_sizes": [4, 8]}
    parameters = shared | {"preset": "quick", "seed": 4, "data": "", "overrides": overrides}
    assert executed[0] == (["01_good"], parameters, 1, 9, False)
    parameters = shared | {"preset": "tiny", "seed": 0, "data": [str(data)], "overrides": {}}
    assert executed[1] == (["01_good", "02_bad"], parameters, 2, 7 * 24 * 3600, True)


def test_dry_run_shows_the_plan_and_writes_nothing(notebooks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "clinic")
    before = sorted(tmp_path.rglob("*"))
    options = ["--preset", "tiny", "--notebooks", notebooks, "--dry-run"]
    assert run("run", *options, "--recipe", "released", "--data", "clinic", "--set", "vqgan.codebook_size=8") == 0
    shown = capsys.readouterr().out
    assert "tiny-clinic-" in shown and "released-set-" in shown and '"vqgan.codebook_size": 8' in shown
    assert "clinic/train: 5" in shown and "clinic/test: 3" in shown and "clinic → clinic: scored" in shown
    assert "01_good.ipynb (to be executed)" in shown and "02_bad.ipynb" in shown
    assert run("run", *options, "--table", "budgets,cross_dataset", "--table", "claims") == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^table +(.+)", shown, re.MULTILINE) == ["budgets", "cross_dataset", "claims"]
    assert "24 train, 8 validation, 12 test" in shown and "site_a → site_b: scored" in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unreadable_image_stops_before_the_notebooks(notebooks, tmp_path, capsys):
    data = own_data(tmp_path / "clinic")
    (data / "test" / "images" / "test1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    options = ["--preset", "tiny", "--notebooks", notebooks, "--results", tmp_path / "out"]
    assert run("run", *options, "--data", data) == 2
    assert "test1.png" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert run("run", *options[:-1], tmp_path / "file") == 2
    assert "file cannot be written" in capsys.readouterr().err


def test_files_of_the_users_in_a_studys_folder_are_not_overwritten(notebooks, tmp_path, monkeypatch, capsys):
    """A folder is a study's by what a first run, also an interrupted one, leaves in it."""
    monkeypatch.setattr(runner, "run_notebooks", lambda chosen, *_: {path.stem: None for path in chosen})
    study = tmp_path / "out" / "tiny-synthetic"
    options = ["run", "--preset", "tiny", "--notebooks", notebooks, "--results", tmp_path / "out"]
    for name in ("index.html", "config.json", "notebooks/01_vqgan_pretrain.ipynb"):
        (file := study / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text("own text")
        for more in ([], ["--table", "budgets"], ["--dry-run"]):
            assert run(*options, *more) == 2
            assert f"{study} holds files" in capsys.readouterr().err
        assert [path for path in study.rglob("*") if path.is_file()] == [file] and file.read_text() == "own text"
        file.unlink()
    (study / "notebooks" / ".lock").touch()
    assert run(*options) == 0, "nothing but folders and hidden files"
    (study / "environment.json").unlink()
    (study / "notebooks" / "01_good.log").touch()
    assert run(*options) == 0 and (study / "index.html").is_file()


@pytest.mark.slow
def test_single_tables(tmp_path, capsys):
    """Their trainings are done in the precision that is asked for, and found again by a second call."""
    settings = ["evaluation.train_sets=site_a", "vqgan.perceptual=none"]
    options = ["--preset", "tiny", "--results", tmp_path, "--set", *settings]
    assert run("run", "--table", "budgets", "--precision", "bf16", *options) == 0
    (table,) = tmp_path.glob("tiny-synthetic*/tables/budgets.csv")
    assert len(pd.read_csv(table)) and f"budgets: {table}" in capsys.readouterr().out
    metrics = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/metrics.json")}
    assert {json.loads(path.read_text()).get("precision") for path in metrics} <= {"bf16-mixed", None}
    assert run("run", "--table", "budgets", *options) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/metrics.json")} == metrics


def test_train_only(tmp_path, monkeypatch, capsys):
    from tokencutseg.experiments import engine, registry

    asked = []
    monkeypatch.setattr(registry, "trainings", lambda study: ["all"])
    monkeypatch.setattr(engine, "train_missing", lambda study, them: asked.append((study.jobs, study.dask, them)))
    options = ["--preset", "tiny", "--results", tmp_path, "--jobs", 3, "--dask", "tcp://a:1"]
    assert run("run", "--train-only", *options) == 0
    assert asked == [(3, "tcp://a:1", ["all"])] and f"{tmp_path / 'runs'}" in capsys.readouterr().out


def test_recipes_shows_every_option(capsys):
    assert run("recipes") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["option", "released", "described", "revised"]
    rows = {line.split()[0]: line.split()[1:] for line in lines if not line.startswith(" ")}
    assert rows.keys() == RECIPES["released"].keys()
    assert rows["segmentation.loss_input"] == ["probabilities", "logits", "logits"]


# fetch and audit ----------------------------------------------------------------------------------------------------


def test_audit_names_an_image_that_two_splits_share(tmp_path, capsys):
    own_data(tmp_path / "clinic", shared=True)
    assert run("audit", "--data", tmp_path / "clinic", "--out", tmp_path / "audit") == 0
    assert len(pd.read_csv(tmp_path / "audit/overlaps.csv")) >= 1
    assert (tmp_path / "audit/contact_sheet.png").is_file()
    shown = capsys.readouterr().out
    assert any("train0" in line and "test0" in line for line in shown.splitlines())
    assert "self-supervised stages use 4 images; left out are 1" in shown
    assert "1 same content as in clinic/test" in shown
    (tmp_path / "audit/overlaps.csv").write_text("mine")
    assert run("audit", "--data", tmp_path / "clinic", "--out", tmp_path / "audit") == 2
    assert (tmp_path / "audit/overlaps.csv").read_text() == "mine"


def test_fetch_goes_on_after_a_failed_set(tmp_path, monkeypatch, capsys):
    from tokencutseg.data import download
    from tokencutseg.data.images import DataError

    def fetch(name, root):
        if name == "isic2016":
            raise DataError("no network")
        return root / name

    monkeypatch.setattr(download, "fetch", fetch)
    for names, status in ((["isic2016", "isic2017"], 1), (["isic2017"], 0)):
        assert run("fetch", *names, "--data", tmp_path) == status
        shown = capsys.readouterr()
        assert shown.err == status * "error: no network\n" and f"isic2017 is in {tmp_path / 'isic2017'}" in shown.out
