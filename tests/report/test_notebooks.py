"""The runner against notebooks that behave, fail, lie, forget and die."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from filelock import FileLock

from tokencutseg.report import notebooks as runner
from tokencutseg.report.notebooks import ROOT, RunError, check_parameters, check_writable, find_notebooks, run_study
from tokencutseg.report.progress import Bars, Lines, ProgressFile
from tokencutseg.training.progress import append_event, report_epoch

PARAMETERS = 'preset: str = "quick"\noverrides: dict = {}'
RECORD = """
import json, os, pathlib
def record():
    path = pathlib.Path(os.environ["TOKENCUTSEG_RECORD"])
    path.write_text(json.dumps({"token": os.environ["TOKENCUTSEG_RUN_TOKEN"], "seconds": 1.0,
                                "tables": [], "figures": []}))
"""


def write_notebook(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a heading, a cell tagged `parameters`, and `cells`."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(f"# About {name}"), tagged, *map(nbformat.v4.new_code_cell, cells)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """One study of four notebooks, two at a time, in a folder with braces and under a hostile Jupyter set-up."""
    home = tmp_path_factory.mktemp("a {study} here")
    wrong = home / "jupyter" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "elsewhere", "language": "python"}
    (wrong / "kernel.json").write_text(json.dumps(spec))
    sources = [
        write_notebook(
            home,
            "01_good",
            RECORD,
            """
import sys
from tokencutseg.training.progress import report_epoch
report_epoch("vqgan", "vqgan-12ab", 1, 2, {"loss": 0.5})
report_epoch("vqgan", "vqgan-12ab", 2, 2, {"loss": 0.25})
seen = [sys.executable, os.getcwd(), preset, overrides, os.environ.get("MPLBACKEND", "")]
pathlib.Path(os.environ["TOKENCUTSEG_RECORD"]).with_name("seen.json").write_text(json.dumps(seen))
record()""",
        ),
        write_notebook(home, "02_raises", RECORD + "record()", "values = []", "values[3]", "record()"),
        write_notebook(home, "03_dies", RECORD, "import signal; os.kill(os.getpid(), signal.SIGKILL)", "record()"),
        write_notebook(home, "04_forgets", "1 + 1"),
    ]
    results = home / "out"
    (results / "notebooks").mkdir(parents=True)
    (results / "notebooks" / "04_forgets.done.json").write_text('{"token": "old", "tables": [], "figures": []}')
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(home / "jupyter"))
        patch.setenv("MPLBACKEND", "Agg")
        outcomes = run_study(
            sources,
            {"preset": "tiny", "overrides": {"vqgan.codebook_size": 8, "a": [None, True, 'q"\n']}},
            results,
            jobs=2,
            timeout=120,
            stream=stream,
        )
    return results / "notebooks", {outcome.notebook: outcome.failure for outcome in outcomes}, stream.getvalue()


def test_a_good_notebook_succeeds(study):
    folder, failures, log = study
    assert list(failures) == sorted(failures), "outcomes come in the order of the notebooks"
    assert failures["01_good"] is None
    executable, cwd, preset, overrides, backend = json.loads((folder / "seen.json").read_text())
    assert executable == sys.executable, "a kernel registered elsewhere must not be used"
    assert Path(cwd) == ROOT
    assert preset == "tiny" and overrides == {"vqgan.codebook_size": 8, "a": [None, True, 'q"\n']}
    assert backend != "Agg", "figures would not be shown in the notebook"
    assert "About 01_good" in (folder / "01_good.html").read_text()
    assert "01_good: done in" in log and "vqgan vqgan-12ab epoch 2 of 2 loss 0.25" in log


@pytest.mark.parametrize(
    "name, words",
    [
        ("02_raises", ["cell In [5]", "IndexError: list index out of range"]),
        ("03_dies", ["cell In [4]", "kernel died"]),
        ("04_forgets", ["without its record"]),
    ],
)
def test_a_failure_is_named_and_keeps_its_output(study, name, words):
    folder, failures, log = study
    assert all(word in failures[name] for word in words), failures[name]
    assert "\n" not in failures[name]
    assert f"{name}: FAILED" in log and str(folder / f"{name}.ipynb") in log
    assert nbformat.read(folder / f"{name}.ipynb", as_version=4).cells
    assert (folder / f"{name}.html").exists()
    assert not (folder / f"{name}.done.json").exists(), "a record stays only where the notebook succeeded"


def test_a_record_must_be_this_executions_and_name_only_what_is_there(tmp_path):
    job = runner._Job(Path("01_a.ipynb"), tmp_path, {}, timeout=1, threads=1, key="k")
    assert "study.finish()" in runner._fault_of_record(job)
    for folder in ("notebooks", "tables", "figures"):
        (tmp_path / folder).mkdir()
    record = {"token": job.token, "tables": ["main_results"], "figures": ["cross_dataset"]}
    for text, fault in (
        ("{", "is not JSON"),
        ("[]", "not written by this"),
        ('{"token": "x"}', "not written by this"),
        (json.dumps(record), "names tables/main_results.csv, which is not there"),
    ):
        job.file(".done.json").write_text(text)
        assert fault in runner._fault_of_record(job)
    (tmp_path / "tables" / "main_results.csv").touch()
    assert "names figures/cross_dataset.png" in runner._fault_of_record(job)
    (tmp_path / "figures" / "cross_dataset.png").touch()
    assert runner._fault_of_record(job) is None


def test_what_is_done_and_unchanged_is_not_executed_again(tmp_path, monkeypatch):
    """Text, parameters, data, the package's code and the outputs all count; `again` overrules them."""
    data = tmp_path / "data"
    data.mkdir()
    notebook = write_notebook(tmp_path, "01_a", RECORD + "record()", parameters=PARAMETERS + '\ndata: str = ""')
    parameters, folder = {"data": str(data)}, tmp_path / "study"
    executed = []

    class Instead(runner._Running):
        """Leaves what a notebook leaves, without a kernel."""

        def __init__(self, job):
            executed.append(job.name)
            for suffix in (".ipynb", ".html"):
                job.file(suffix).touch()
            job.file(".done.json").write_text(json.dumps({"token": job.token, "tables": ["t"], "figures": []}))
            (folder / "tables").mkdir(exist_ok=True)
            (folder / "tables" / "t.csv").touch()
            self.job, self.progress, self.started = job, ProgressFile(job.file(".progress.jsonl")), time.monotonic()
            context = multiprocessing.get_context("fork")
            self._answer, theirs = context.Pipe(duplex=False)
            theirs.send(None)
            self.process = context.Process(target=int)
            self.process.start()

    monkeypatch.setattr(runner, "_Running", Instead)

    def count(**options):
        executed.clear()
        given = options.pop("parameters", parameters)
        (outcome,) = run_study([notebook], given, folder, stream=io.StringIO(), **options)
        assert outcome.failure is None
        return len(executed)

    assert (count(), count(), count(again=True), count()) == (1, 0, 1, 0)
    (folder / "tables" / "t.csv").unlink()
    assert (count(), count()) == (1, 0)
    (data / "new.jpg").touch()
    assert (count(), count()) == (1, 0)
    assert count(parameters=parameters | {"preset": "tiny"}) == 1
    write_notebook(tmp_path, "01_a", RECORD + "record()  # changed", parameters=PARAMETERS + '\ndata: str = ""')
    assert (count(), count()) == (1, 0)


def test_traceback_is_in_the_log(study):
    folder, _, _ = study
    assert "IndexError" in (folder / "02_raises.log").read_text()


def test_a_cell_that_hangs_is_a_failure(tmp_path):
    notebook = write_notebook(tmp_path, "01_hangs", "import time; time.sleep(600)")
    (outcome,) = run_study([notebook], {}, tmp_path / "out", timeout=1, stream=io.StringIO())
    assert "cell In [2]" in outcome.failure and "CellTimeoutError" in outcome.failure


def test_interrupting_the_runner_ends_its_kernels(tmp_path):
    pid_file = tmp_path / "pid"
    notebook = write_notebook(
        tmp_path,
        "01_long",
        f"""
import os, pathlib, time
pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))
time.sleep(600)""",
    )
    code = (
        "import sys, signal, pathlib; from tokencutseg.report.notebooks import run_study\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "    run_study([pathlib.Path(sys.argv[1])], {}, pathlib.Path(sys.argv[2]))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, str(script), str(notebook), str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    )
    _wait(lambda: pid_file.exists() and pid_file.read_text(), 180)
    process.send_signal(signal.SIGTERM)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    kernel = int(pid_file.read_text())
    _wait(lambda: not _is_alive(kernel), 180)
    assert not _is_alive(kernel)


def test_unknown_parameters_and_other_types_stop_before_anything_starts(tmp_path):
    notebook = write_notebook(tmp_path, "01_good", "raise AssertionError")
    with pytest.raises(RunError, match=r"01_good.ipynb has no parameter 'recipe'. Known: preset, overrides"):
        run_study([notebook], {"recipe": "revised"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for value in ((1, 2), np.float64(0.5), {1: 2}, float("nan"), Path()):
        with pytest.raises(RunError, match="plain JSON"):
            check_parameters(notebook, {"preset": value})
    check_parameters(notebook, {"preset": {"a": [1, 0.5, None, True, "x"]}})


def test_what_is_no_notebook_is_an_error(tmp_path):
    (tmp_path / "01_broken.ipynb").write_text("{")
    tagged = nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[tagged]), tmp_path / "02_no_kernel.ipynb")
    for name in ("01_broken", "02_no_kernel", "03_missing"):
        with pytest.raises(RunError, match=f"{name}.ipynb cannot be read as a notebook"):
            check_parameters(tmp_path / f"{name}.ipynb", {})


def test_notebooks_are_chosen_by_number_or_name(tmp_path):
    for name in ("01_a", "02_b", "10_c"):
        write_notebook(tmp_path, name)
    write_notebook(tmp_path, "scratch")
    assert [path.stem for path in find_notebooks(tmp_path)] == ["01_a", "02_b", "10_c"]
    assert [path.stem for path in find_notebooks(tmp_path, ["10", "01_a"])] == ["01_a", "10_c"]
    with pytest.raises(RunError, match=r"no notebook '1'. Known: 01_a, 02_b, 10_c"):
        find_notebooks(tmp_path, ["1"])
    with pytest.raises(RunError, match="--notebooks"):
        find_notebooks(tmp_path / "elsewhere")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/study cannot be written .* with --results"):
        check_writable(tmp_path / "file" / "study")


def test_two_executions_of_one_notebook_do_not_mix(tmp_path):
    notebook = write_notebook(tmp_path, "01_a")
    (tmp_path / "out" / "notebooks").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out" / "notebooks" / "01_a.lock"),
        pytest.raises(RunError, match=r"01_a is being executed in .* by another process"),
    ):
        run_study([notebook], {}, tmp_path / "out")


# progress -----------------------------------------------------------------------------------------------------------


def test_progress_file_gives_each_whole_line_once(tmp_path, monkeypatch):
    path = tmp_path / "progress"
    reader = ProgressFile(path)
    assert reader.new_events() == []
    monkeypatch.setenv("TOKENCUTSEG_PROGRESS", str(path))
    report_epoch("vqgan", "r", 1, 2, {"loss": 1})
    event = {"stage": "vqgan", "run": "r", "epoch": 1, "epochs": 2, "metrics": {"loss": 1.0}}
    assert reader.new_events() == [event]
    with path.open("a") as file:
        file.write('{"cell": 1, ')
    assert reader.new_events() == []
    with path.open("a") as file:
        file.write('"cells": 3}\n{"cell": 2, "cells": 3}\n')
    assert reader.new_events() == [{"cell": 1, "cells": 3}, {"cell": 2, "cells": 3}]
    assert reader.new_events() == []
    append_event(path, event)
    assert reader.new_events() == [event]


def test_report_epoch_is_silent_outside_the_runner(tmp_path, monkeypatch):
    monkeypatch.delenv("TOKENCUTSEG_PROGRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    report_epoch("vqgan", "r", 1, 2, {})
    assert list(tmp_path.iterdir()) == []


def test_lines_are_few_but_the_last_epoch_is_said():
    stream = io.StringIO()
    lines = Lines(stream)
    for epoch in range(1, 101):
        lines.event("01", {"stage": "gpt", "run": "r", "epoch": epoch, "epochs": 100, "metrics": {"loss": 1 / epoch}})
    assert stream.getvalue().count("\n") == 2
    assert stream.getvalue().endswith("01: gpt r epoch 100 of 100 loss 0.01\n")


def test_bars_show_cells_and_epochs():
    stream = io.StringIO()
    bars = Bars(stream)
    bars.event("01_vqgan", {"cell": 3, "cells": 9})
    bars.event("01_vqgan", {"stage": "gpt", "run": "r", "epoch": 4, "epochs": 8, "metrics": {"loss": 0.5}})
    bars.finished("01_vqgan", "01_vqgan: done in 3 s")
    bars.close()
    shown = stream.getvalue()
    assert "3/9" in shown and "gpt r" in shown and "4/8" in shown and "loss 0.5" in shown and "done in 3 s" in shown


def _wait(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")
