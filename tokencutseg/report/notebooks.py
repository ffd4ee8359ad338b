"""Runs a study's notebooks with papermill, each in a subprocess whose exit status says whether it has succeeded.

papermill's own word is not enough: after a kernel was killed the executed notebook reads "completed" in every cell.
"""

from __future__ import annotations

import ast
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
from typing import Any

from filelock import Timeout
from tqdm import tqdm

import tokencutseg
from tokencutseg.config import ConfigError
from tokencutseg.files import CHECKOUT, atomic_write, available_cores, locked, write_json

_OUTPUT = re.compile(r"""study\.(table|figure)\(\s*["'](\w+)["']""")


def find_notebooks(folder: Path | None = None, only: Iterable[str] = ()) -> list[Path]:
    """The numbered notebooks of `folder` (by default the checkout's) in order; `only` names some, as "03" or in full.

    Raises ConfigError when there are none, or for a name that is not there.
    """
    if folder is None and CHECKOUT is None:
        raise ConfigError("the notebooks are not in the installed package; clone the repository, or use --notebooks")
    folder, only = folder or Path(f"{CHECKOUT}/notebooks"), set(only)
    notebooks = sorted(folder.absolute().glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise ConfigError(f"no notebooks named NN_….ipynb in {folder}; give their folder with --notebooks")
    if unknown := only - {name for path in notebooks for name in (path.stem, path.stem[:2])}:
        raise ConfigError(f"no notebook {min(unknown)!r}. Known: {', '.join(path.stem for path in notebooks)}")
    return [path for path in notebooks if not only or only & {path.stem, path.stem[:2]}]


def check_parameters(notebook: Path, names: Iterable[str]) -> None:
    """Raise ConfigError unless `notebook` assigns all `names` in its cell tagged `parameters`; papermill only warns."""
    try:
        nodes = ast.walk(ast.parse("\n".join(_code(notebook, "parameters"))))
    except (OSError, ValueError, LookupError, TypeError, SyntaxError) as error:
        raise ConfigError(f"{notebook} cannot be read as a notebook: {type(error).__name__}: {error}") from error
    known = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{notebook.name} has no parameter {unknown[0]!r}. Known: {', '.join(known) or 'none'}")


KEPT = re.compile(r"-\d{8}-\d{6}$")
"""How the name ends of a notebook that `run_notebooks` keeps because its user had changed it."""


def check_writable(path: Path, option: str, file: bool = False) -> None:
    """Write in the folder `path`, or in that of the new `file`, and make it, before anything that takes long.

    Raises ConfigError, which names the `option` to change; also for a file that is there, which may be anybody's.
    """
    if file and path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give the name of a file")
    if file and path.exists():
        raise ConfigError(f"{path} is there already and would be lost; choose another name with {option}")
    folder = path.absolute().parent if file else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = error.strerror or error
        raise ConfigError(f"{folder} cannot be written ({what}); choose another folder with {option}") from error


def run_notebooks(
    notebooks: Sequence[Path],
    parameters: dict[str, Any],
    study: Path,
    jobs: int = 1,
    timeout: int | None = None,
    again: bool = False,
) -> dict[str, str | None]:
    """Execute `notebooks` with `parameters`, `jobs` at a time, into the folder `study`; one that fails stops no other.

    Writes ``notebooks/<name>.ipynb`` and ``.html`` (also of a failed notebook, as far as it came), ``.log``, and
    ``.done.json`` (of those that succeeded). Such a notebook is left alone unless `again` is set, as long as its text,
    the package, `parameters` and the study's name (in which the data are hashed) are the same, and its tables are
    as it has written them. An executed notebook that is not as it was written here (``.sha256``) is kept under another
    name. `timeout` is in seconds per cell; progress goes to standard error.

    Returns, by notebook, None or one line that names the cell and the error. Raises ConfigError where another process
    is executing notebooks in this folder.
    """
    study = study.absolute()
    folder, keys = study / "notebooks", _keys(notebooks, [study.name, parameters])
    known = states(notebooks, parameters, study)
    folder.mkdir(parents=True, exist_ok=True)

    def run(notebook: Path) -> str | None:
        target, partial, failure, cells = folder / notebook.name, folder / f".{notebook.name}", "", 0
        log, done, written = (target.with_suffix(suffix) for suffix in (".log", ".done.json", ".sha256"))

        def say(text: str) -> None:
            tqdm.write(f"{time.strftime('%H:%M:%S')} {notebook.stem}: {text}", file=sys.stderr)

        if not again and known[notebook] == "done":
            bar.update(len(_code(notebook)) + 1)
            say("unchanged since it was done")
            return None
        say("started")
        started, cwd = time.monotonic(), str(CHECKOUT or notebook.parent)
        # papermill formats paths with the parameters, so braces must be doubled
        paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, partial)]
        job = {"input_path": paths[0], "output_path": paths[1], "parameters": parameters, "cwd": cwd}
        command = [sys.executable, "-m", "tokencutseg.report.execute", json.dumps(job | {"execution_timeout": timeout})]
        options: dict[str, Any] = {"stdin": alive, "stdout": subprocess.PIPE, "encoding": "utf-8", "env": environment}
        with log.open("w") as errors, subprocess.Popen(command, stderr=errors, cwd=cwd, **options) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "cell\n":
                    cells += 1
                    bar.update()
                else:
                    failure = f"{f'cell In [{cells}]' if cells else 'before its first cell'}: {line.strip():.300}"
        if process.returncode == -signal.SIGINT:  # how Python ends on KeyboardInterrupt
            say("interrupted")
            return "interrupted"
        ended = f"its process ended with exit status {process.returncode} (killed, or out of memory)"
        failure = (failure or ended) if process.returncode else ""
        ours = [facts(target).get("sha256"), written.read_text() if written.is_file() else None]
        done.unlink(missing_ok=True)
        if partial.is_file():
            if target.is_file() and _sha256(target) not in ours:
                kept = target.with_name(f"{target.stem}-{time.strftime('%Y%m%d-%H%M%S')}.ipynb")
                say(f"the notebook that was there is not as it was executed and is kept as {target.rename(kept).name}")
            with atomic_write(written) as file:
                file.write_text(_sha256(partial))
            partial.replace(target)
            from tokencutseg.report.html import write_html  # nbconvert takes seconds to import

            try:
                write_html(target)
            except Exception as error:  # such as LaTeX that cannot be read
                failure = failure or f"its page cannot be written: {type(error).__name__}: {error}"
        if failure:
            say(f"FAILED, {failure}. As far as it came: {target if target.is_file() else log}")
            return failure
        seconds = round(time.monotonic() - started)
        outputs = _written(study, notebook)
        write_json({"key": keys[notebook], "seconds": seconds, "outputs": outputs}, done)
        say(f"done in {seconds} s")
        return None

    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / ".lock", timeout=0))
        except Timeout:
            reason = "is executing notebooks there; wait for it, or choose another folder with --results"
            raise ConfigError(f"{study} is in use: another process {reason}") from None
        environment = _kernel_environment(Path(stack.enter_context(TemporaryDirectory())), available_cores() // jobs)
        total = sum(len(_code(notebook)) + 1 for notebook in notebooks)  # papermill adds a cell with the parameters
        bar = stack.enter_context(tqdm(total=total, unit="cell", disable=None, leave=False))
        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        alive, parent = os.pipe()  # what runs in the pool ends when `parent` is closed, be it because this was killed
        stack.callback(os.close, alive)
        stack.callback(os.close, parent)
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        # where several run at once, the last, which takes longest, is among the first
        order = list(notebooks) if jobs == 1 else [*notebooks[-1:], *notebooks[:-1]]
        futures = {notebook: pool.submit(run, notebook) for notebook in order}
        return {notebook.stem: futures[notebook].result() for notebook in notebooks}


def states(notebooks: Sequence[Path], parameters: dict[str, Any], study: Path) -> dict[Path, str]:
    """What `run_notebooks` finds: "done", with nothing changed; "changed" since it was done; or "to be executed"."""
    found, keys = {}, _keys(notebooks, [study.absolute().name, parameters])
    for notebook in notebooks:
        target = study / "notebooks" / notebook.name
        done = facts(target)
        there = target.is_file() and target.with_suffix(".html").is_file()
        same = there and done.get("key") == keys[notebook] and done.get("outputs") == _written(study, notebook)
        found[notebook] = "done" if same else "changed" if done else "to be executed"
    return found


def _written(study: Path, notebook: Path) -> dict[str, str | None]:
    """The files that a notebook's code has written, by name, and what is in its tables, which `--table` writes, too."""
    there = [output for output in named_outputs(notebook) if (study / output).is_file()]
    return {name: _sha256(study / name) if name.endswith(".csv") else None for name in there}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def facts(executed: Path) -> dict[str, Any]:
    """What is noted beside an executed notebook that has succeeded (key, seconds, outputs, …); {} for any other."""
    return read_facts(executed.with_suffix(".done.json"))


def read_facts(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none, as in a damaged file."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def named_outputs(notebook: Path) -> list[str]:
    """The files of a study that a notebook's code writes, as ``tables/<name>.csv`` and ``figures/<name>.png``."""
    names = dict.fromkeys(found for source in _code(notebook) for found in _OUTPUT.findall(source))
    return [f"tables/{name}.csv" if kind == "table" else f"figures/{name}.png" for kind, name in names]


def _code(notebook: Path, tag: str = "") -> list[str]:
    """The sources of a notebook's code cells, or of those with a tag."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    chosen = [cell for cell in cells if cell["cell_type"] == "code"]
    return ["".join(cell["source"]) for cell in chosen if not tag or tag in cell["metadata"].get("tags", ())]


def _kernel_environment(private: Path, threads: int) -> dict[str, str]:
    """The environment in which kernels are this interpreter, without the user's start-up files, and show figures.

    A kernel `python3` that the user has registered elsewhere would come before our own otherwise.
    """
    spec = private / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    write_json({"argv": argv, "display_name": "Python 3", "language": "python"}, spec)
    environment = {"OMP_NUM_THREADS": str(max(1, threads)), **os.environ, "TOKENCUTSEG_HEADLESS": "1"}
    environment.pop("MPLBACKEND", None)  # left to IPython
    own = {"JUPYTER_PATH": str(private), "IPYTHONDIR": str(private / "ipython")}
    return environment | own | {"PYTHONIOENCODING": "utf-8:backslashreplace"}


def _keys(notebooks: Sequence[Path], common: Any) -> dict[Path, str]:
    """A hash of what decides each notebook's outcome: its text, the package's files, and `common`."""
    digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode())
    for source in sorted(Path(tokencutseg.__file__).parent.rglob("*.*")):
        if source.suffix in (".py", ".toml", ".safetensors"):
            digest.update(source.read_bytes())
    return {path: hashlib.sha256(digest.digest() + path.read_bytes()).hexdigest() for path in notebooks}
