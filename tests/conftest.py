import os

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest

from tokencutseg.config import configure

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process takes whole files, and one takes every file of the tiny study, which then is trained once."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tiny study" if file.startswith("tests/browser/") or file == "tests/test_notebooks.py" else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Decoded images go to a folder of this test run, not to the user's cache."""
    before = os.environ.get("TOKENCUTSEG_CACHE")
    os.environ["TOKENCUTSEG_CACHE"] = before or str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["TOKENCUTSEG_CACHE"]


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
