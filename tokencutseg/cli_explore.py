"""The command `tokencutseg explore`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokencutseg.config import ConfigError
from tokencutseg.files import CHECKOUT


def need(*packages: str) -> None:
    """Raise ConfigError where a package of the extra `notebooks` is missing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"{missing[0]} is not installed; install it with: pip install 'tokencutseg[notebooks]'")


def explore(arguments: argparse.Namespace) -> int:
    """Serve the explorer as a page, or a notebook in JupyterLab, until Ctrl-C; the exit status."""
    need("jupyterlab", "ipywidgets", "voila")
    from jupyter_core.paths import jupyter_runtime_dir

    if arguments.notebooks is None and CHECKOUT is None:
        raise ConfigError("the notebooks do not come with the installed package; clone the repository")
    notebooks = Path(arguments.notebooks or f"{CHECKOUT}/notebooks").absolute()
    start = Path(arguments.notebook).name  # a number, a name, or a path
    if (arguments.model or arguments.data) and not start.startswith("explorer"):
        raise ConfigError("--model and --data are for the explorer; a notebook has a cell with its parameters")
    if not (found := sorted(path for path in notebooks.glob("*.ipynb") if path.name.startswith(start))):
        raise ConfigError(f"{notebooks} holds no {start}*.ipynb; name a folder that does with --notebooks")
    environment = dict(os.environ)
    for name, path in (("model", arguments.model), ("data", arguments.data)):
        if path and not path.exists():
            raise ConfigError(f"--{name} {path} does not exist")
        if path:
            environment[f"TOKENCUTSEG_EXPLORE_{name.upper()}"] = str(path.absolute())
    if arguments.device != "auto":
        environment["TOKENCUTSEG_DEVICE"] = arguments.device
    print(f"device: {_checked(arguments)}", flush=True)
    # defaults, which the user's own settings override: it does not ask whether it may fetch news, takes large uploads,
    # saves the checkout's notebooks without outputs, and shows the explorer by our template
    for name in ("JUPYTER_CONFIG_PATH", "JUPYTER_PATH"):
        paths = [str(Path(__file__).parent / "explore" / "jupyter"), *filter(None, [os.environ.get(name)])]
        environment[name] = os.pathsep.join(paths)
    environment["JUPYTER_TOKEN"] = token = secrets.token_hex(24)
    page = "voila/render" if arguments.notebook == "explorer" and not arguments.lab else "lab/tree"
    # it asks for the token that is printed, and listens to this machine alone
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={notebooks}", "--ip=127.0.0.1"]
    command += [f"--LabApp.default_url=/{page}/{found[0].name}", f"--port={arguments.port}", "-y"]
    command += ["--no-browser"] if arguments.no_browser else []
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # as in a container
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as server,
    ):
        try:
            about = Path(jupyter_runtime_dir(), f"jpserver-{server.pid}.json")  # written when it listens
            while server.poll() is None and not (about.exists() and about.stat().st_size):
                time.sleep(0.1)
            if server.poll() is None:
                address = json.loads(about.read_text())["url"]  # with the port that it has got
                print(f"{address}{page}/{found[0].name}?token={token}  (Ctrl-C ends it)", flush=True)
            server.wait()
        except KeyboardInterrupt:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(10)
            server.kill()  # one that waits for a kernel which is being started
            return 0
        log.seek(0)
        print(log.read(), file=sys.stderr)
        return server.returncode


def _checked(arguments: argparse.Namespace) -> str:
    """Where the notebook will compute, in words. Raises ConfigError or DataError for what it could only fail on."""
    from tokencutseg.explore.queries import check
    from tokencutseg.models.hardware import Hardware, choose_device

    choose_device(arguments.device)
    if arguments.notebook != "explorer":
        return Hardware(arguments.device).describe()
    check(arguments.model or "", str(arguments.data or ""))
    return f"{Hardware('cpu', '32-true').describe()}; the explorer computes there only"
