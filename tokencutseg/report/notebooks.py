"""Runs a study's notebooks with papermill, each in a subprocess whose exit status says whether it has succeeded.

papermill's own word is not enough: it only warns about an unknown parameter, and after a kernel was killed the executed
notebook reads "completed" in every cell.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, TextIO

from filelock import FileLock, Timeout
from tqdm import tqdm

import tokencutseg
from tokencutseg.files import CHECKOUT, available_cores, write_json

CELL_TIMEOUT = 7 * 24 * 3600
"""Seconds one cell may take: a week, so that a hung kernel ends some day and no honest training is cut off."""
_OUTPUT = re.compile(r"""study\.(table|figure)\(\s*["'](\w+)["']""")


class RunError(RuntimeError):
    """A study that cannot be run. The message says what is wrong and what to do."""


def find_notebooks(folder: Path | None = None, only: Iterable[str] = ()) -> list[Path]:
    """The numbered notebooks of `folder` (by default the checkout's) in order; `only` names some, as "03" or in full.

    Raises RunError when there are none, or for a name that is not there.
    """
    if folder is None and CHECKOUT is None:
        raise RunError("the notebooks do not come with the installed package; clone the repository, or use --notebooks")
    folder, only = folder or Path(f"{CHECKOUT}/notebooks"), set(only)
    notebooks = sorted(folder.absolute().glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise RunError(f"no notebooks named NN_….ipynb in {folder}; give their folder with --notebooks")
    if unknown := only - {name for path in notebooks for name in (path.stem, path.stem[:2])}:
        raise RunError(f"no notebook {min(unknown)!r}. Known: {', '.join(path.stem for path in notebooks)}")
    return [path for path in notebooks if not only or only & {path.stem, path.stem[:2]}]


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Raises RunError unless `notebook` declares every one of `parameters` and their values are plain JSON."""
    import papermill

    try:
        known = papermill.inspect_notebook(_literal(notebook))
    except (OSError, ValueError) as error:  # no such file, not JSON, not a notebook, no kernel named in it
        raise RunError(f"{notebook} cannot be read as a notebook: {' '.join(str(error).split())}") from error
    if unknown := [name for name in parameters if name not in known]:
        raise RunError(f"{notebook.name} has no parameter {unknown[0]!r}. Known: {', '.join(known) or 'none'}")
    try:
        plain = json.loads(json.dumps(parameters, allow_nan=False)) == parameters
    except (TypeError, ValueError):
        plain = False
    if not plain:
        raise RunError(f"parameters must be made of plain JSON types, not {parameters!r}")


def check_writable(folder: Path, option: str) -> None:
    """Make `folder` and write in it. Raises RunError, naming the `option` to change, before hours have been spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = error.strerror or error
        raise RunError(f"{folder} cannot be written ({what}); choose another folder with {option}") from error


def run_notebooks(
    notebooks: Sequence[Path],
    parameters: dict[str, Any],
    study: Path,
    *,
    jobs: int = 1,
    timeout: int = CELL_TIMEOUT,
    again: bool = False,
    stream: TextIO | None = None,
) -> dict[str, str | None]:
    """Execute `notebooks` with `parameters`, `jobs` at a time, into the folder `study`; one that fails stops no other.

    Writes ``notebooks/<name>.ipynb`` and ``.html`` (also of a failed notebook, as far as it came), ``.log``, and
    ``.done.json`` (of those that succeeded). Such a notebook is left alone unless `again` is set, as long as its text,
    the package, `parameters` and the study's name (in which the data are hashed) are the same, and its outputs are
    there. `timeout` is in seconds per cell; progress goes to `stream` (default: standard error).

    Returns, by notebook, None or one line that names the cell and the error. Raises RunError, before anything starts,
    for a parameter that a notebook lacks, and where another process is executing notebooks in this folder.
    """
    for notebook in notebooks:
        check_parameters(notebook, parameters)
    study, stream = study.absolute(), stream or sys.stderr
    folder, keys = study / "notebooks", _keys(notebooks, [study.name, parameters])
    folder.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        tqdm.write(f"{time.strftime('%H:%M:%S')} {text}", file=stream)

    def run(notebook: Path) -> str | None:
        name, target, cells, failure = notebook.stem, folder / notebook.name, 0, ""
        partial, log, done = folder / f".{notebook.name}", target.with_suffix(".log"), target.with_suffix(".done.json")
        left = [target.with_suffix(".html"), *(study / output for output in facts(target).get("outputs", ()))]
        if not again and facts(target).get("key") == keys[notebook] and all(path.is_file() for path in left):
            bar.update(len(_code(notebook)) + 1)
            say(f"{name}: unchanged since it was done")
            return None
        say(f"{name}: started")
        started = time.monotonic()
        job: dict[str, Any] = {"input_path": _literal(notebook), "output_path": _literal(partial)}
        job |= {"parameters": parameters, "cwd": str(CHECKOUT or notebook.parent), "execution_timeout": timeout}
        command = [sys.executable, "-m", "tokencutseg.report.execute", json.dumps(job)]
        options: dict[str, Any] = {"stdin": alive, "stdout": subprocess.PIPE, "text": True, "env": environment}
        with log.open("w") as errors, subprocess.Popen(command, stderr=errors, cwd=job["cwd"], **options) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "cell\n":
                    cells += 1
                    bar.update()
                else:
                    failure = f"{f'cell In [{cells}]' if cells else 'before its first cell'}: {line.strip():.300}"
        if process.returncode == -signal.SIGINT:  # how Python ends on KeyboardInterrupt
            return "interrupted"
        if process.returncode == 0:
            failure = ""
        elif not failure:
            failure = f"its process ended with exit status {process.returncode} (killed, or out of memory)"
        done.unlink(missing_ok=True)
        if partial.is_file():
            partial.replace(target)
            from tokencutseg.report.html import write_html  # nbconvert takes seconds to import

            try:
                write_html(target)
            except Exception as error:  # such as LaTeX that cannot be read
                failure = failure or f"its page cannot be written: {type(error).__name__}: {error}"
        if failure:
            say(f"{name}: FAILED, {failure}. As far as it came: {target if target.is_file() else log}")
            return failure
        seconds = round(time.monotonic() - started)
        outputs = [output for output in named_outputs(notebook) if (study / output).is_file()]
        write_json({"key": keys[notebook], "seconds": seconds, "outputs": outputs}, done)
        say(f"{name}: done in {seconds} s")
        return None

    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / ".lock").acquire(timeout=0))
        except Timeout:
            reason = "is executing notebooks there; wait for it, or choose another folder with --results"
            raise RunError(f"{study} is in use: another process {reason}") from None
        environment = _kernel_environment(Path(stack.enter_context(TemporaryDirectory())), available_cores() // jobs)
        total = sum(len(_code(notebook)) + 1 for notebook in notebooks)  # papermill adds a cell with the parameters
        bar = stack.enter_context(tqdm(total=total, unit="cell", file=stream, disable=not stream.isatty(), leave=False))
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        alive, parent = os.pipe()  # what runs in the pool ends when `parent` is closed, be it because this was killed
        stack.callback(os.close, alive)
        stack.callback(os.close, parent)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        # where several run at once, the last, which takes longest, is among the first
        order = list(notebooks) if jobs == 1 else [*notebooks[-1:], *notebooks[:-1]]
        futures = {notebook: pool.submit(run, notebook) for notebook in order}
        return {notebook.stem: futures[notebook].result() for notebook in notebooks}


def facts(executed: Path) -> dict[str, Any]:
    """What is noted beside an executed notebook that has succeeded (key, seconds, outputs); {} for any other."""
    done = executed.with_suffix(".done.json")
    return json.loads(done.read_text()) if done.is_file() else {}


def named_outputs(notebook: Path) -> list[str]:
    """The files of a study that a notebook's code writes, as ``tables/<name>.csv`` and ``figures/<name>.png``."""
    names = [found for source in _code(notebook) for found in _OUTPUT.findall(source)]
    return [f"tables/{name}.csv" if kind == "table" else f"figures/{name}.png" for kind, name in dict.fromkeys(names)]


def _code(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def _kernel_environment(private: Path, threads: int) -> dict[str, str]:
    """The environment in which kernels are this interpreter, without the user's start-up files, and show figures.

    A kernel `python3` that the user has registered elsewhere would come before our own otherwise.
    """
    spec = private / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    write_json({"argv": argv, "display_name": "Python 3", "language": "python"}, spec)
    environment = {"OMP_NUM_THREADS": str(max(1, threads)), **os.environ}
    environment.pop("MPLBACKEND", None)  # left to IPython
    own = {"JUPYTER_PATH": str(private), "IPYTHONDIR": str(private / "ipython"), "TOKENCUTSEG_HEADLESS": "1"}
    return environment | own


def _keys(notebooks: Sequence[Path], common: Any) -> dict[Path, str]:
    """A hash of what decides each notebook's outcome: its text, the package's files, and `common`."""
    digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode())
    for source in sorted(Path(tokencutseg.__file__).parent.rglob("*.*")):
        if source.suffix in (".py", ".toml", ".safetensors"):
            digest.update(source.read_bytes())
    return {path: hashlib.sha256(digest.digest() + path.read_bytes()).hexdigest() for path in notebooks}


def _literal(path: Path) -> str:
    """A path as papermill wants it: it formats paths with the parameters, so braces must be doubled."""
    return str(path).replace("{", "{{").replace("}", "}}")
