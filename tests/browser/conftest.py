"""The explorer and JupyterLab, in the system's own Chromium, driven by Playwright, which downloads nothing."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
WAIT = 300_000  # milliseconds at most for anything: a busy machine fails no test


def pytest_runtest_setup(item):
    pytest.importorskip("playwright", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(f"this system has none of {', '.join(BROWSERS)}")


@contextmanager
def started(folder, command, **options):
    """The address of a server that `command` starts, with Jupyter's own folders below `folder`."""
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
            while not (
                found := re.search(r"http://(127\.0\.0\.1|localhost):\d+/(lab|voila)\S*token=\w+", log.read_text())
            ):
                assert server.poll() is None, f"it did not start:\n{log.read_text()}"
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
def open_page(browser):
    """A function that starts a server and opens the address that it prints, or another one made from it; on the page
    are `errors` and `strangers` (requests to others)."""

    @contextmanager
    def opened(folder, command, other=lambda address: address, **options):
        with started(folder, command, **options) as address:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(WAIT)
            page.errors, page.strangers = [], []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
            own = (re.match(r"\w+://[^/]+", address).group(), "data:", "blob:")
            page.on("request", lambda sent: sent.url.startswith(own) or page.strangers.append(sent.url))
            page.goto(other(address), wait_until="commit")
            yield page
            page.close()

    return opened


@pytest.fixture(scope="package")
def run_notebook(open_page):
    """A function that opens a notebook in a lab of its own, runs all cells from the menu, and gives the page."""

    @contextmanager
    def run(folder, command, notebook, **options):
        def its(address):
            return re.sub(r"/lab[^?]*", f"/lab/tree/{notebook}", address)

        with open_page(folder, command, its, **options) as page:
            page.get_by_text("| Idle").wait_for()  # in the status bar; before, the menu does nothing
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            yield page

    return run


@pytest.fixture(scope="package")
def page(open_page, tmp_path_factory):
    """The explorer."""
    folder = tmp_path_factory.mktemp("explorer")
    with open_page(folder, ["tokencutseg", "explore"]) as page:
        page.while_starting = page.locator("#loading").inner_text()
        page.locator(".widget-tab img").first.wait_for()
        page.printed = (folder / "log").read_text()
        yield page
