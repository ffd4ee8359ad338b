import os

os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest

from tokencutseg.config import configure

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("untimed")


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
