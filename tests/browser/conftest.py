"""A browser for the tests here: the system's own Chromium, driven by Playwright, which downloads nothing."""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from tokencutseg.models.checkpoint import PRETRAINED

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
EXPECTED = re.compile(r".*could not be fetched.*\n?(  .*\n?)?|No such comm.*\n?")
"""On stderr: which weights a notebook does without where there is no network, with the line of code that warns; and
that JupyterLab asks a fresh kernel for its widgets before it has imported any."""
WAIT = 900_000  # milliseconds at most for anything: a busy machine fails no test


def pytest_runtest_setup(item):
    """Skips before anything is trained."""
    pytest.importorskip("playwright", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(f"this system has none of {', '.join(BROWSERS)}")


@pytest.fixture(scope="package")
def chromium(tiny_study):  # the study first: while Playwright runs, no other event loop can
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox cannot be had as root or in most containers; the pages are ours
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and everything that went wrong in it."""

    page: object
    own: tuple[str, ...]
    """How the addresses start that it may ask for."""
    errors: list[str] = field(default_factory=list)
    """What it wrote to its console, and what its kernel raised or wrote to stderr."""
    strangers: list[str] = field(default_factory=list)
    """Other addresses that it asked for; the requests were stopped."""
    asked: set[str] = field(default_factory=set)
    """Messages that its kernel has not dealt with yet."""

    def __post_init__(self):
        self.page.set_default_timeout(WAIT)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("websocket", self._listen)
        self.page.route(lambda address: not address.startswith((*self.own, "data:", "blob:")), self._stop)

    def _stop(self, route):
        self.strangers.append(route.request.url)
        route.abort()

    def _listen(self, websocket):
        if "/api/kernels/" in websocket.url:
            websocket.on("framesent", self._kernel_hears)
            websocket.on("framereceived", self._kernel_says)

    def _kernel_hears(self, frame):
        channel, header, _, _ = _message(frame)
        if channel == "shell":
            self.asked.add(header["msg_id"])

    def _kernel_says(self, frame):
        """What a widget's callback raises appears in no output, only here."""
        _, header, parent, content = _message(frame)
        if header["msg_type"] == "status" and content["execution_state"] == "idle":
            self.asked.discard(parent.get("msg_id"))
        elif header["msg_type"] == "error":
            self.errors.append("\n".join(content["traceback"]))
        elif header["msg_type"] == "stream" and content["name"] == "stderr":
            self.errors += filter(None, [EXPECTED.sub("", content["text"]).strip()])

    def settle(self):
        """Wait until the kernel has dealt with everything that the page has asked by now."""
        until = time.monotonic() + WAIT / 1000
        while self.asked:
            self.page.wait_for_timeout(50)
            assert time.monotonic() < until, f"the kernel has left {len(self.asked)} messages unanswered"


def _message(frame):
    """Channel, header, parent's header and content of what goes to a kernel or comes from it.

    The framing is version 1 of Jupyter's for websockets: count, offsets, then the parts.
    """
    (count,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    channel, header, parent, _, content = (frame[offsets[i] : offsets[i + 1]] for i in range(5))
    return channel.decode(), json.loads(header), json.loads(parent), json.loads(content)


@pytest.fixture(scope="package")
def lab(tiny_study, chromium, tmp_path_factory):
    """The address of a JupyterLab as `tokencutseg explore` starts it, on a copy of the notebooks.

    The numbered ones are about the tiny study, whose models are trained. Nothing is written outside of this test's
    folders.
    """
    folder = tmp_path_factory.mktemp("lab")
    results = folder / "results" / tiny_study.name
    results.mkdir(parents=True)
    (results / "runs").symlink_to(tiny_study / "runs")
    (folder / "notebooks").mkdir()
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = load_notebook_node(str(path))
        if path.stem != "explorer":
            notebook = parameterize_notebook(notebook, {"preset": "tiny", "results": str(results.parent)})
        nbformat.write(notebook, folder / "notebooks" / path.name)
    private = {
        name: str(folder / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
            "npm_config_cache",
        )
    }
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}  # which is IPython's here
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tokencutseg.cli",
        "explore",
        "--no-browser",
        "--model",
        str(PRETRAINED),
        "--notebooks",
        str(folder / "notebooks"),
        "--port",
        str(port),
    ]
    log = folder / "log"
    with (
        log.open("w") as written,
        subprocess.Popen(command, env=environment | private, stdout=written, stderr=subprocess.STDOUT) as server,
    ):
        try:
            while not (address := re.search(r"http://127\.0\.0\.1:\d+/lab\S+token=\w+", log.read_text())):
                assert server.poll() is None, f"JupyterLab did not start:\n{log.read_text()}"
                time.sleep(0.2)
            yield address.group()
        finally:
            server.terminate()


@pytest.fixture(scope="package")
def watch(chromium):
    """A function that opens a page 1280 pixels wide; it may ask only for addresses that start as `own` do."""

    def opened(*own, **options):
        return Watched(chromium.new_page(viewport={"width": 1280, "height": 1000}, **options), own)

    return opened
