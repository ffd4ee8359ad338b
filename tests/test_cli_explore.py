"""What `tokencutseg explore` says before it starts a server."""

import json
import subprocess
from types import SimpleNamespace

import pytest
from PIL import Image

from tokencutseg import cli_explore
from tokencutseg.cli import main
from tokencutseg.config import configure
from tokencutseg.files import CHECKOUT


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    # not in the module of all, which imports of libraries use
    monkeypatch.setattr(cli_explore, "subprocess", SimpleNamespace(Popen=interrupt, DEVNULL=subprocess.DEVNULL))


@pytest.fixture
def folder(tmp_path):
    """No model, a baseline, no data, and images without masks."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "unet").mkdir()
    about = {"stage": "baseline", "name": "unet", "config": configure("tiny").to_dict()}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(about))
    (tmp_path / "unet" / "model.safetensors").touch()
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    ("option", "name"), [("--model", "empty"), ("--model", "unet"), ("--data", "empty"), ("--data", "photos")]
)
def test_what_the_explorer_could_not_show_is_said_at_once(folder, capsys, option, name):
    assert main(["explore", option, str(folder / name)]) == 2
    shown = capsys.readouterr()
    assert str(folder / name) in shown.err and "Traceback" not in shown.err and "http" not in shown.out


def test_a_notebook_takes_no_model_or_data(folder, capsys):
    assert main(["explore", "03", "--data", str(folder / "photos")]) == 2
    assert "are for the explorer" in capsys.readouterr().err


@pytest.mark.parametrize("notebook", ["explorer", "03", str(CHECKOUT / "notebooks/03_deepcut_seg.ipynb")])
def test_the_device_is_said_or_refused(monkeypatch, capsys, notebook):
    for variable in ("cpu", "tpu"):
        monkeypatch.setenv("TOKENCUTSEG_DEVICE", variable)
        assert main(["explore", notebook]) == (130 if variable == "cpu" else 2)
        shown = capsys.readouterr()
        assert "device: CPU" in shown.out if variable == "cpu" else "tpu" in shown.err
