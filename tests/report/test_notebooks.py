"""The runner against notebooks that behave, fail, hang and die."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from filelock import FileLock

from tokencutseg.config import ConfigError
from tokencutseg.files import CHECKOUT
from tokencutseg.report import html
from tokencutseg.report import notebooks as runner
from tokencutseg.report.index import write_index
from tokencutseg.report.notebooks import check_parameters, find_notebooks, run_notebooks


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # which it remains where nobody waits for it
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def study(write_notebook, tmp_path_factory):
    """One study of four notebooks, two at a time, in a folder with braces and under a hostile Jupyter set-up."""
    home = tmp_path_factory.mktemp("a {study} 'hier' für \"alle\"")
    wrong = home / "jupyter" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "elsewhere", "language": "python"}
    (wrong / "kernel.json").write_text(json.dumps(spec))
    startup = home / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("own_start_up = True")
    seen = "[sys.executable, os.getcwd(), preset, overrides, os.environ.get('MPLBACKEND', ''), 'own_start_up' in dir()]"
    sources = [
        write_notebook(home, "01_good", f"import json, os, sys\nprint(json.dumps({seen}))"),
        write_notebook(home, "02_raises", "values = []", "raise IndexError('β\\nγ')", "print('never')"),
        write_notebook(home, "03_kernel_dies", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        write_notebook(home, "04_hangs", "import time; time.sleep(600)"),
        write_notebook(home, "05_papermill_dies", "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"),
    ]
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(stream):
        patch.setenv("JUPYTER_PATH", str(home / "jupyter"))
        patch.setenv("IPYTHONDIR", str(home / "ipython"))
        patch.setenv("MPLBACKEND", "Agg")
        patch.setenv("PYTHONIOENCODING", "ascii")
        parameters = {"preset": "tiny", "overrides": {"vqgan.codebook_size": 8, "a": [None, True, 'q"\n']}}
        failures = run_notebooks(sources, parameters, home / "out", jobs=2, timeout=5)
    return home / "out" / "notebooks", failures, stream.getvalue()


@pytest.mark.slow
def test_good_notebook(study):
    folder, failures, log = study
    assert list(failures) == sorted(failures), "outcomes come in the order of the notebooks"
    assert failures["01_good"] is None and "01_good: done in" in log
    (output,) = nbformat.read(folder / "01_good.ipynb", as_version=4).cells[-1].outputs
    executable, cwd, preset, overrides, backend, started = json.loads(output.text)
    assert executable == sys.executable and not started, "neither the user's kernel nor start-up files"
    assert Path(cwd) == CHECKOUT
    assert preset == "tiny" and overrides == {"vqgan.codebook_size": 8, "a": [None, True, 'q"\n']}
    assert backend != "Agg", "figures would not be shown in the notebook"
    assert "About 01_good" in (folder / "01_good.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("02_raises", ["cell In [4]", "IndexError: β γ"]),
        ("03_kernel_dies", ["cell In [3]", "kernel died"]),
        ("04_hangs", ["cell In [3]", "CellTimeoutError"]),
        ("05_papermill_dies", ["exit status -9"]),
    ],
)
def test_failures(study, name, parts):
    """Each is named in one line and keeps what was executed; it never passes for done."""
    folder, failures, log = study
    assert all(part in failures[name] for part in parts), failures[name]
    assert "\n" not in failures[name] and f"{name}: FAILED" in log and str(folder / f"{name}.ipynb") in log
    assert nbformat.read(folder / f"{name}.ipynb", as_version=4).cells
    assert (folder / f"{name}.html").exists() and not (folder / f"{name}.done.json").exists()


def test_unchanged_notebooks_are_left_alone(write_notebook, tmp_path, monkeypatch):
    """Text, parameters, the study's name, the package's code and the outputs count; `again` overrules them."""
    code = 'class study:\n    table = print\nstudy.table("t", 1)'
    notebook, folder = write_notebook(tmp_path, "01_a", code), tmp_path / "study"
    executed = []

    class FakeProcess(subprocess.Popen):
        """Leaves an executed notebook without a kernel."""

        def __init__(self, command, **options):
            executed.append(json.loads(command[-1]))
            Path(executed[-1]["output_path"]).write_text(notebook.read_text())
            (folder / "tables").mkdir(exist_ok=True)
            (folder / "tables" / "t.csv").write_text("")
            super().__init__(["true"], **options)

    monkeypatch.setattr(subprocess, "Popen", FakeProcess)
    monkeypatch.setattr(html, "write_html", lambda path: path.with_suffix(".html").touch())

    def count(parameters=None, **options):
        executed.clear()
        assert run_notebooks([notebook], parameters or {}, folder, **options) == {"01_a": None}
        return len(executed)

    assert list(runner.states([notebook], {}, folder).values()) == ["to be executed"]
    assert (count(), count(), count(again=True), count()) == (1, 0, 1, 0)
    assert list(runner.states([notebook], {}, folder).values()) == ["done"]
    assert list(runner.states([notebook], {"preset": "tiny"}, folder).values()) == ["changed"]
    (folder / "tables" / "t.csv").unlink()
    assert (count(), count()) == (1, 0)
    (folder / "tables" / "t.csv").write_text("of another plan")
    assert (count(), count()) == (1, 0)
    assert (count({"preset": "tiny"}), count({"preset": "tiny"})) == (1, 0)
    write_notebook(tmp_path, "01_a", code + "  # changed")
    assert (count(), count()) == (1, 0)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").touch()
    monkeypatch.setattr(runner.tokencutseg, "__file__", str(tmp_path / "package" / "__init__.py"))
    assert (count(), count()) == (1, 0)
    (folder / "notebooks" / "01_a.ipynb").write_text("somebody's answers")
    assert (count(), count(again=True)) == (0, 1)
    (kept,) = folder.glob("notebooks/01_a-*.ipynb")
    assert kept.read_text() == "somebody's answers"
    for damaged in (b"{", b"[1]", b"\xff"):
        (folder / "notebooks" / "01_a.done.json").write_bytes(damaged)
        assert (count(), count()) == (1, 0)
    assert list(folder.glob("notebooks/01_a-*.ipynb")) == [kept]


@pytest.mark.parametrize("before", ["unknown", "failed", "failed and edited"])
def test_a_notebook_that_is_not_as_it_was_executed_is_kept(write_notebook, tmp_path, monkeypatch, before):
    notebook, folder = write_notebook(tmp_path, "01_a"), tmp_path / "study" / "notebooks"

    class FailingProcess(subprocess.Popen):
        def __init__(self, command, **options):
            Path(json.loads(command[-1])["output_path"]).write_text(notebook.read_text())
            super().__init__(["false"], **options)

    monkeypatch.setattr(subprocess, "Popen", FailingProcess)
    folder.mkdir(parents=True)
    if before != "unknown":
        assert run_notebooks([notebook], {}, folder.parent)["01_a"]
    if before != "failed":
        (folder / "01_a.ipynb").write_text("own text")
    assert run_notebooks([notebook], {}, folder.parent)["01_a"]
    kept = [path.read_text() for path in folder.glob("01_a-*.ipynb")]
    assert kept == ([] if before == "failed" else ["own text"])
    assert "01_a" in write_index(folder.parent).read_text(), "also where what was kept is no notebook"


@pytest.mark.slow
def test_no_kernel_outlives_the_runner(write_notebook, tmp_path):
    """What an earlier execution has left stays, too, and the next call starts anew."""
    pid_file, out = tmp_path / "pid", tmp_path / "out"
    code = f"import os, pathlib, time\npathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    notebook = write_notebook(tmp_path, "01_long", code)
    (out / "notebooks").mkdir(parents=True)
    (out / "notebooks" / "01_long.ipynb").write_text("from before")
    script = (
        "import sys, signal, pathlib; from tokencutseg.report.notebooks import run_notebooks\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "run_notebooks([pathlib.Path(sys.argv[1])], {}, pathlib.Path(sys.argv[2]))\n"
    )
    for stop in (signal.SIGTERM, signal.SIGKILL):
        pid_file.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-c", script, notebook, out], stderr=subprocess.DEVNULL)
        wait_for(lambda: pid_file.exists() and pid_file.read_text())
        process.send_signal(stop)
        process.wait(60)
        wait_for(lambda: has_ended(int(pid_file.read_text())))
        assert (out / "notebooks" / "01_long.ipynb").read_text() == "from before"
    write_notebook(tmp_path, "01_long", "1 + 1")
    assert run_notebooks([notebook], {}, out) == {"01_long": None}


def test_check_parameters(write_notebook, tmp_path):
    notebook = write_notebook(tmp_path, "01_good", "other = 1", parameters='preset = ""\nseed: int = 0; x = "a = b"')
    check_parameters(notebook, ["preset", "seed", "x"])
    with pytest.raises(ConfigError, match=r"no parameter 'other'. Known: preset, seed, x"):
        check_parameters(notebook, ["preset", "other"])
    (tmp_path / "02_broken.ipynb").write_text("{")
    (tmp_path / "03_no_notebook.ipynb").write_text("{}")
    write_notebook(tmp_path, "04_no_python", parameters="a = ")
    for name in ("02_broken", "03_no_notebook", "04_no_python", "05_missing"):
        with pytest.raises(ConfigError, match=f"{name}.ipynb cannot be read as a notebook"):
            check_parameters(tmp_path / f"{name}.ipynb", [])


def test_find_notebooks(write_notebook, tmp_path, monkeypatch):
    for name in ("01_a", "02_b", "10_c", "scratch"):
        write_notebook(tmp_path, name)
    assert [path.stem for path in find_notebooks(tmp_path)] == ["01_a", "02_b", "10_c"]
    assert [path.stem for path in find_notebooks(tmp_path, ["10", "01_a"])] == ["01_a", "10_c"]
    with pytest.raises(ConfigError, match=r"no notebook '1'. Known: 01_a, 02_b, 10_c"):
        find_notebooks(tmp_path, ["1"])
    with pytest.raises(ConfigError, match="--notebooks"):
        find_notebooks(tmp_path / "elsewhere")
    monkeypatch.setattr(runner, "CHECKOUT", None)
    with pytest.raises(ConfigError, match="clone the repository"):
        find_notebooks()


def test_two_runners_in_one_study(write_notebook, tmp_path):
    notebook = write_notebook(tmp_path, "01_a")
    (tmp_path / "out" / "notebooks").mkdir(parents=True)
    with FileLock(tmp_path / "out" / "notebooks" / ".lock"), pytest.raises(ConfigError, match="out is in use"):
        run_notebooks([notebook], {}, tmp_path / "out")
