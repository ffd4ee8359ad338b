"""JupyterLab, in the system's own Chromium, driven by Playwright, which downloads nothing."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
EXPLORER = Path(__file__).parents[2] / "notebooks" / "explorer.ipynb"
WAIT = 120_000  # milliseconds at most for anything: a busy machine fails no test


def pytest_runtest_setup(item):
    pytest.importorskip("playwright", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(f"this system has none of {', '.join(BROWSERS)}")


@contextmanager
def started_lab(folder, command, **options):
    """The address of a JupyterLab that `command` starts, with Jupyter's own folders below `folder`."""
    names = ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")
    private = {f"JUPYTER{'' if 'LAB' in name else '_'}{name}": str(folder / name.lower()) for name in names}
    private["IPYTHONDIR"] = str(folder / "ipython")
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"} | private
    environment |= options.pop("env", {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        command = [sys.executable, "-m", *command, "--no-browser", "--port", str(free.getsockname()[1])]
    log = folder / "log"
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out, **options) as server:
        try:
            while not (found := re.search(r"http://(127\.0\.0\.1|localhost):\d+/lab\S*token=\w+", log.read_text())):
                assert server.poll() is None, f"JupyterLab did not start:\n{log.read_text()}"
                time.sleep(0.2)
            yield found.group()
        finally:
            server.terminate()


@pytest.fixture(scope="package")
def browser():
    """Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox cannot be had as root or in most containers; the pages are ours
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def run_notebook(browser):
    """A function that opens a notebook in a lab of its own, runs all cells from the menu, and gives the page, on which
    are `errors` and `strangers` (requests to others)."""

    @contextmanager
    def run(folder, command, notebook, **options):
        with started_lab(folder, command, **options) as address:
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(WAIT)
            page.errors, page.strangers = [], []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
            server = address.partition("/lab")[0].partition("//")[2]
            page.on("request", lambda request: server in request.url or page.strangers.append(request.url))
            page.goto(re.sub(r"/lab[^?]*", f"/lab/tree/{notebook}", address))
            page.get_by_text("| Idle").wait_for()  # in the status bar; before, the menu does nothing
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            yield page
            page.close()

    return run


@pytest.fixture(scope="package")
def page(run_notebook, tmp_path_factory):
    """The explorer, from a copy."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copy(EXPLORER, folder)
    with run_notebook(folder, ["tokencutseg", "explore", "--notebooks", folder], "explorer.ipynb") as page:
        page.locator(".jp-RenderedHTMLCommon table").last.wait_for()  # of the last cell
        yield page
