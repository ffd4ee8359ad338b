"""Executes the study's notebooks through papermill, strictly.

Papermill's own word is not enough to go by: it only warns about an unknown parameter, and after a kernel was killed
the executed notebook says "completed" in every cell. So parameters are checked first, each notebook has a process of
its own (papermill's `cwd` is process-wide), and a notebook has succeeded when its last cell has written a *record*, a
small JSON file that repeats a token given to this execution only.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

import tokencutseg
from tokencutseg.files import available_cores
from tokencutseg.report.progress import ProgressFile, progress_on
from tokencutseg.training.progress import PROGRESS_FILE, append_event

ROOT = Path(tokencutseg.__file__).parent.parent
"""The checkout: kernels run here, and `notebooks/` lies here."""
RECORD_FILE = "TOKENCUTSEG_RECORD"
"""Environment variable: where the notebook's last cell writes its record."""
RUN_TOKEN = "TOKENCUTSEG_RUN_TOKEN"
"""Environment variable: what the record must repeat as `token`."""
START_TIMEOUT = 600
"""Seconds a kernel may take to start; papermill's 60 are too few on a busy machine."""
CELL_TIMEOUT = 7 * 24 * 3600
"""Seconds one cell may take: a week, so that a hung kernel ends some day and no honest training is cut off."""
_POLL = 0.2


class RunError(RuntimeError):
    """A study that cannot be started. The message says what is wrong and what to do."""


@dataclass(frozen=True)
class Outcome:
    """How one notebook ended. `failure` is None, or one sentence naming the cell and the error."""

    notebook: str
    failure: str | None
    seconds: float


@dataclass(frozen=True)
class _Job:
    """One notebook's execution: everything its process has to know."""

    notebook: Path
    study: Path
    parameters: dict[str, Any]
    timeout: int
    threads: int
    key: str
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def name(self) -> str:
        return self.notebook.stem

    def file(self, suffix: str) -> Path:
        return self.study / "notebooks" / (self.name + suffix)


def find_notebooks(folder: Path = ROOT / "notebooks", only: Iterable[str] = ()) -> list[Path]:
    """The numbered notebooks of `folder` in order, or those that `only` names by number ("03") or by full name.

    Raises RunError when there are none, or for a name that is not there.
    """
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise RunError(f"no notebooks named NN_….ipynb in {folder}; give their folder with --notebooks")
    chosen = set()
    for wanted in only:
        found = [path for path in notebooks if wanted in (path.stem, path.stem[:2])]
        if not found:
            raise RunError(f"no notebook {wanted!r}. Known: {', '.join(path.stem for path in notebooks)}")
        chosen.update(found)
    return [path for path in notebooks if not only or path in chosen]


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Raises RunError unless `notebook` declares every one of `parameters` and their values are plain JSON."""
    import papermill

    try:
        known = papermill.inspect_notebook(_literal(notebook))
    except (OSError, ValueError) as error:  # no such file, not JSON, not a notebook, no kernel named in it
        raise RunError(f"{notebook} cannot be read as a notebook: {_one_line(str(error))}") from error
    for name, value in parameters.items():
        if name not in known:
            raise RunError(f"{notebook.name} has no parameter {name!r}. Known: {', '.join(known) or 'none'}")
        if not _is_json(value):
            raise RunError(f"parameter {name!r} must be made of plain JSON types, not {value!r}")


def check_writable(folder: Path, option: str = "--results") -> None:
    """Make `folder` and write in it. Raises RunError, naming the `option` to change, before hours have been spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RunError(
            f"{folder} cannot be written ({error.strerror or error}); choose another folder with {option}"
        ) from error


def run_study(
    notebooks: Sequence[Path],
    parameters: dict[str, Any],
    study: Path,
    *,
    jobs: int = 1,
    timeout: int = CELL_TIMEOUT,
    again: bool = False,
    stream: TextIO | None = None,
) -> list[Outcome]:
    """Execute `notebooks` with `parameters`, `jobs` at a time, into the folder `study`.

    Writes ``notebooks/<name>.ipynb`` and ``.html`` (also of a failed notebook, as far as it came), ``.log``,
    ``.progress.jsonl``, and ``.done.json``, the record, which stays if and only if the notebook succeeded. The
    notebooks do not depend on each other: one that fails leaves the others running. `timeout` is in seconds per cell;
    progress goes to `stream` (default: standard error). A notebook that succeeded before, with the same text, code,
    parameters and data, is left as it is unless `again` is set.

    Returns the outcomes in the order of `notebooks`. Raises RunError, before anything has started, for a parameter that
    a notebook lacks, a folder that cannot be written, or a notebook that another process is executing in this folder.
    """
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    check_writable(study / "notebooks")
    threads = max(1, available_cores() // jobs)
    keys = _keys(notebooks, parameters)
    every = [_Job(path.resolve(), study.resolve(), parameters, timeout, threads, keys[path]) for path in notebooks]
    kept = [job for job in every if not again and _is_up_to_date(job)]
    pending = deque(job for job in every if job not in kept)
    if jobs > 1:
        pending.rotate(1)  # the ablations, which take longest, shall not be what the others have left for the end
    running: dict[int, _Running] = {}  # by the sentinel of the process
    outcomes = {job.notebook: Outcome(job.name, None, 0.0) for job in kept}
    progress = progress_on(stream or sys.stderr)
    for job in kept:
        progress.say(f"{job.name}: unchanged since it was done")
    with ExitStack() as held:
        for job in pending:
            try:
                held.enter_context(FileLock(job.file(".lock")).acquire(timeout=0))
            except Timeout:
                raise RunError(
                    f"{job.name} is being executed in {study} by another process; wait for it, "
                    "or choose another folder with --results"
                ) from None
        held.callback(progress.close)
        held.callback(lambda: [one.stop() for one in running.values()])
        while pending or running:
            while pending and len(running) < jobs:
                one = _Running(pending.popleft())
                running[one.process.sentinel] = one
                progress.say(f"{one.job.name}: started")
            ended = wait(list(running), timeout=_POLL)
            for sentinel, one in list(running.items()):
                for event in one.progress.new_events():
                    progress.event(one.job.name, event)
                if sentinel in ended:
                    outcome = one.outcome()
                    outcomes[one.job.notebook] = outcome
                    del running[sentinel]
                    progress.finished(one.job.name, _verdict(outcome, one.job))
    return [outcomes[path.resolve()] for path in notebooks]


class _Running:
    """The process that executes one notebook."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        for suffix in (".done.json", ".progress.jsonl", ".html"):
            job.file(suffix).unlink(missing_ok=True)
        self.progress = ProgressFile(job.file(".progress.jsonl"))
        self.started = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self._answer, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_execute, args=(job, theirs), name=job.name)
        self.process.start()
        theirs.close()

    def outcome(self) -> Outcome:
        """Judge the ended process. A record that does not count is deleted, so that nobody else trusts it."""
        self.process.join()
        try:
            failure = self._answer.recv()
        except EOFError:
            failure = f"its process ended with exit status {self.process.exitcode} (killed, or out of memory)"
        failure = failure or _fault_of_record(self.job)
        path = self.job.file(".done.json")
        if failure:
            path.unlink(missing_ok=True)
        else:
            path.write_text(json.dumps(json.loads(path.read_text()) | {"key": self.job.key}, indent=1) + "\n")
        return Outcome(self.job.name, failure, time.monotonic() - self.started)

    def stop(self) -> None:
        """End the process; on SIGTERM it shuts its kernel down."""
        self.process.terminate()
        self.process.join(15)
        self.process.kill()
        self.job.file(".done.json").unlink(missing_ok=True)


def _fault_of_record(job: _Job) -> str | None:
    """What is wrong with the record that the notebook has left, if anything."""
    path = job.file(".done.json")
    if not path.exists():
        return "it ended without its record; its last cell must call study.finish()"
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        return f"its record {path} is not JSON: {error}"
    if not isinstance(record, dict) or record.get("token") != job.token:
        return f"its record {path} was not written by this execution"
    missing = _missing_outputs(job, record)
    return f"its record names {missing[0]}, which is not there" if missing else None


def _missing_outputs(job: _Job, record: dict[str, Any]) -> list[str]:
    """The tables and figures that a record names and that are not there."""
    named = [
        f"{kind}/{name}{suffix}"
        for kind, suffix in (("tables", ".csv"), ("figures", ".png"))
        for name in record.get(kind, ())
    ]
    return [output for output in named if not (job.study / output).is_file()]


def _is_up_to_date(job: _Job) -> bool:
    """Whether this notebook has succeeded before under the same key, and everything it left is still there."""
    try:
        record = json.loads(job.file(".done.json").read_text())
    except (OSError, ValueError):
        return False
    executed = all(job.file(suffix).is_file() for suffix in (".ipynb", ".html"))
    return isinstance(record, dict) and record.get("key") == job.key and executed and not _missing_outputs(job, record)


def _keys(notebooks: Sequence[Path], parameters: dict[str, Any]) -> dict[Path, str]:
    """What decides a notebook's outcome, as a hash: its text, the package's code, the parameters, and the data's file
    names, sizes and times of change."""
    common = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for source in sorted(Path(tokencutseg.__file__).parent.rglob("*.py")):
        common.update(source.read_bytes())
    data = parameters.get("data")
    for path in sorted(Path(data).rglob("*")) if data else ():
        stat = path.stat()
        common.update(f"{path} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return {path: hashlib.sha256(common.digest() + path.read_bytes()).hexdigest() for path in notebooks}


def _execute(job: _Job, answer: Connection) -> None:
    """In the notebook's own process: execute it, export it, and send what went wrong, or None."""
    with job.file(".log").open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    cells = [0]  # code cells begun: the number that Jupyter shows as In [n]
    try:
        failure = _papermill(job, cells)
    except Exception as error:  # this process's boundary: the parent makes it the notebook's failure
        traceback.print_exc()
        dead = type(error).__name__ == "DeadKernelError"
        what = "the kernel died (killed, or out of memory)" if dead else f"{type(error).__name__}: {error}"
        failure = f"{f'cell In [{cells[0]}]' if cells[0] else 'before its first cell'}: {_one_line(what)}"
    if job.file(".ipynb").exists():
        from tokencutseg.report.html import write_html  # here, as nbconvert takes seconds to import

        write_html(job.file(".ipynb"))
    answer.send(failure)


def _papermill(job: _Job, cells: list[int]) -> str | None:
    import nbformat
    import papermill

    notebook = nbformat.read(job.notebook, as_version=4)
    total = sum(cell.cell_type == "code" for cell in notebook.cells) + 1  # papermill adds one with the parameters

    def on_cell_execute(**_: Any) -> None:
        cells[0] += 1
        append_event(job.file(".progress.jsonl"), {"cell": cells[0], "cells": total})

    with tempfile.TemporaryDirectory() as private:
        _set_environment(job, Path(private))
        try:
            papermill.execute_notebook(
                notebook,
                _literal(job.file(".ipynb")),
                parameters=job.parameters,
                kernel_name="python3",
                language="python",
                cwd=ROOT,
                execution_timeout=job.timeout,
                start_timeout=START_TIMEOUT,
                progress_bar=False,
                on_cell_execute=on_cell_execute,
            )
        except papermill.PapermillExecutionError as error:
            print(error, flush=True)
            return f"cell In [{error.exec_count}]: {_one_line(f'{error.ename}: {error.evalue}')}"
    return None


def _set_environment(job: _Job, private: Path) -> None:
    """The kernel's environment. `private` holds a kernel spec naming this very interpreter: a `python3` that the user
    has registered elsewhere would come first otherwise, and so would the user's IPython start-up files."""
    spec = private / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    os.environ["JUPYTER_PATH"] = str(private)
    os.environ["IPYTHONDIR"] = str(private / "ipython")
    os.environ.pop("MPLBACKEND", None)  # left to IPython, which shows figures in the notebook
    os.environ.setdefault("OMP_NUM_THREADS", str(job.threads))
    os.environ[RECORD_FILE] = str(job.file(".done.json"))
    os.environ[RUN_TOKEN] = job.token
    os.environ[PROGRESS_FILE] = str(job.file(".progress.jsonl"))


def _verdict(outcome: Outcome, job: _Job) -> str:
    if outcome.failure is None:
        return f"{job.name}: done in {outcome.seconds:.0f} s"
    left = ".ipynb" if job.file(".ipynb").exists() else ".log"
    return f"{job.name}: FAILED, {outcome.failure}. As far as it came: {job.file(left)}"


def _literal(path: Path) -> str:
    """A path as papermill wants it: it formats paths with the parameters, so braces must be doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"


def _is_json(value: Any) -> bool:
    """Exact types: a tuple would arrive as a string, and a numpy scalar, though a float, breaks papermill's save."""
    if type(value) is dict:
        return all(type(key) is str and _is_json(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_json, value))
    return value is None or type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value))
