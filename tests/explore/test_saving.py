"""Jupyter's own contents manager, with the settings that `tokencutseg explore` gives it."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from jupyter_server.services.contents.largefilemanager import LargeFileManager
from traitlets.config import Config

from tokencutseg.explore import saving
from tokencutseg.files import CHECKOUT

SETTINGS = Path(saving.__file__).parent / "jupyter" / "jupyter_server_config.json"


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """Of a checkout's notebooks/, with another folder in it."""
    monkeypatch.setattr(saving, "CHECKOUT", tmp_path)
    shutil.copytree(CHECKOUT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "notebooks" / "mine").mkdir()
    return LargeFileManager(root_dir=str(tmp_path / "notebooks"), config=Config(json.loads(SETTINGS.read_text())))


def run_as_jupyterlab_does(manager, path):
    """A notebook with what a run, a click on a fold, and another Python leave in it."""
    model = manager.get(path)
    model["content"]["metadata"]["language_info"]["version"] = "3.99"
    for cell in model["content"]["cells"]:
        cell["metadata"] |= {"trusted": True, "jupyter": {"source_hidden": False}}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [nbformat.v4.new_output("stream", text="hello")], 3
    return model


def test_running_a_notebook_changes_no_file_and_an_edit_its_own_lines(manager):
    for file in Path(manager.root_dir).glob("*.ipynb"):
        before, model = file.read_text("utf-8"), run_as_jupyterlab_does(manager, file.name)
        manager.save(model, file.name)
        assert file.read_text("utf-8") == before
        model["content"]["cells"][0]["source"] = "mine"
        manager.save(model, file.name)
        first, *others = nbformat.read(file, as_version=4).cells
        assert first.source == "mine" and others == nbformat.reads(before, as_version=4).cells[1:]


def test_notebooks_elsewhere_are_saved_whole(manager):
    shutil.copy(Path(manager.root_dir, "explorer.ipynb"), Path(manager.root_dir, "mine"))
    manager.save(run_as_jupyterlab_does(manager, "mine/explorer.ipynb"), "mine/explorer.ipynb")
    saved = nbformat.read(Path(manager.root_dir, "mine", "explorer.ipynb"), as_version=4)
    assert any(cell.get("outputs") for cell in saved.cells)
