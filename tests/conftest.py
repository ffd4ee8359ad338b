import os
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest

from tokencutseg.config import configure

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("untimed")


LONGEST = ("test_notebooks.py", "experiments/test_engine.py", "experiments/test_ablations.py", "test_cli.py")
LONGEST += ("report/test_notebooks.py", "experiments/test_reference.py", "training/test_ddp.py", "training/test_fit.py")
"""The files that take longest, in that order, below this folder."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """They come first: of several processes none then starts one when the others have nothing left to do."""
    rank = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Decoded images go to a folder of this test run, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("TOKENCUTSEG_CACHE"):
            patch.setenv("TOKENCUTSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def write_notebook():
    """A function that writes a notebook with a heading, a cell tagged `parameters`, and `cells`."""
    import nbformat.v4 as nb

    def write(folder, name, *cells, parameters='preset = "quick"\noverrides = {}'):
        tagged = nb.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        cells = [nb.new_markdown_cell(f"# About {name}"), tagged, *map(nb.new_code_cell, cells)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.ipynb").write_text(nb.writes(nb.new_notebook(cells=cells)))
        return folder / f"{name}.ipynb"

    return write


@pytest.fixture
def tiny():
    """The smallest configuration of the revised recipe."""
    return configure("tiny")


@pytest.fixture(scope="session")
def tiny_study(tmp_path_factory):
    """The folder of everything that `tokencutseg run --preset tiny` leaves."""
    from tokencutseg.cli import main

    results = tmp_path_factory.mktemp("results")
    assert main(["run", "--preset", "tiny", "--results", str(results)]) == 0
    return results / "tiny-synthetic"
