"""A notebook beside a finished study, opened as the README says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "02_masked_gpt.ipynb"


@pytest.mark.slow
def test_a_notebook_finds_the_study(run_notebook, tmp_path):
    """In a copy of the checkout: nothing is trained again, no cell fails, and no file appears beside the notebooks."""
    checkout, jupyter = tmp_path / "a checkout", tmp_path / "jupyter"
    for part in ("tokencutseg", "notebooks"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    environment = {"PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", "tokencutseg", "run", "--preset", "tiny", "--only", NAME[:2]]
    subprocess.run(command, cwd=tmp_path, env=os.environ | environment, check=True)
    notebook = checkout / "notebooks" / NAME
    notebook.write_text(notebook.read_text().replace('preset = \\"quick\\"', 'preset = \\"tiny\\"'))
    before = {folder: sorted(folder.iterdir()) for folder in (checkout / "results" / "runs", checkout / "notebooks")}
    jupyter.mkdir()
    root = ["--allow-root"] if os.geteuid() == 0 else []
    with run_notebook(jupyter, ["jupyterlab", "notebooks", *root], NAME, cwd=checkout, env=environment) as page:
        for _ in range(60):  # the kernel is idle between cells, too
            page.wait_for_timeout(2000)
            page.keyboard.press("Control+s")
            cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
            if all(cell["execution_count"] for cell in cells):
                break
        page.wait_for_timeout(2000)
    assert not [out for cell in cells for out in cell["outputs"] if out["output_type"] == "error"]
    assert all(cell["execution_count"] for cell in cells)
    left = {folder: [path for path in sorted(folder.iterdir()) if path.name[0] != "."] for folder in before}
    assert left == before
