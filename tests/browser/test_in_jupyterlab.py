"""Every notebook in JupyterLab as a reader meets it: run, looked at, and moved with the keyboard alone."""

import io
import os
import re
import time

import pytest
from PIL import Image

from tokencutseg.report.outputs import OUTPUTS

ALWAYS = ("explorer", "03_deepcut_seg")
"""The notebooks that are opened in every run of the tests; the others with TOKENCUTSEG_BROWSER=all."""
WIDGETS = ".jp-CodeCell:has(.jupyter-widgets)"
KEYS = {
    "slider": ("ArrowRight", "End", "Home"),
    "list": ("ArrowDown", "ArrowDown"),
    "dropdown": ("ArrowDown", "ArrowUp"),
    "checkbox": ("Space",),
    "button": ("Enter",),
    "upload": ("Enter",),
}
IN_WORDS = {"most on", "row", "column"}
"""Controls that a panel of the explorer may answer with a list or a sentence; the others must change a picture."""
NO_LESION = {"prediction"}
"""Controls that show nothing of the tiny study's models, which find no lesion after seconds of training."""
WAIT = 20
"""Seconds that a browser on a busy machine may take to draw."""

LOOK = """() => {
    const seen = (root, selector) => [...root.querySelectorAll(selector)].filter(element => element.checkVisibility());
    const kind = element => element.matches("select") ? (element.size > 1 ? "list" : "dropdown")
        : element.matches(".noUi-handle") ? "slider" : element.matches("input") ? "checkbox"
        : element.matches(".widget-upload") ? "upload" : "button";
    const label = element => {
        const part = element.matches("button") ? element
            : element.closest("label, .jupyter-widgets:has(.widget-label)");
        return part.querySelector(".widget-label")?.textContent || part.textContent || part.title;
    };
    window.controls = root => {
        const all = ".noUi-handle, select, input[type=checkbox], .widget-button, .widget-upload";
        root.querySelectorAll("[data-control]").forEach(element => element.removeAttribute("data-control"));
        return seen(root, all).map((element, index) => {
            element.dataset.control = index;
            return {index, kind: kind(element), label: label(element).trim(),
                    board: element.closest(".widget-gridbox") !== null};
        });
    };
    window.follow = root => {
        root.reached = new Set();
        root.addEventListener("focusin", event => root.reached.add(event.target.dataset.control));
        return seen(root, ".jp-OutputArea *")
            .filter(element => element.tabIndex >= 0 || element.isContentEditable).length;
    };
    window.wide = root => seen(root, ".jp-OutputArea, .jp-OutputArea *")
        .filter(element => !element.querySelector("table.dataframe") && element.scrollWidth > element.clientWidth + 2
                && ["auto", "scroll"].includes(getComputedStyle(element).overflowX))
        .map(element => [element.scrollWidth, element.clientWidth, element.className, element.textContent.slice(0, 9)]);
    window.pictures = root => seen(root, ".jp-OutputArea img").map(image => image.src).join();
    window.encode_to_tokens = root => seen(root, ".widget-html, select[size]").map(element => element.innerText).join();
    window.remember = root => { root.before = {pictures: pictures(root), words: words(root)}; };
    window.changed = (root, what) => window[what](root) !== "" && window[what](root) !== root.before[what];
}"""


@pytest.fixture(scope="module", params=["explorer", *OUTPUTS])
def notebook(request, lab, watch):
    """A notebook of which all cells have been run from the menu."""
    if request.param not in ALWAYS and os.environ.get("TOKENCUTSEG_BROWSER") != "all":
        pytest.skip("TOKENCUTSEG_BROWSER=all opens this notebook too")
    server, token = re.match(r"(\w+://[^/]+).*token=(\w+)", lab).groups()
    watched = watch(server, server.replace("http", "ws"))
    watched.name, page = request.param, watched.page
    page.goto(lab.replace("/lab/tree/explorer", f"/lab/workspaces/{request.param}/tree/{request.param}"))
    page.get_by_text("| Idle").wait_for()  # in the status bar; before, the menu does nothing
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function("""() => {
        const prompts = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")];
        return !prompts.some(prompt => prompt.textContent.includes("*")) && /\\d/.test(prompts[0].textContent);
    }""")
    watched.settle()
    page.evaluate(LOOK)
    yield watched
    headers = {"Authorization": f"token {token}"}
    for kernel in page.request.get(f"{server}/api/kernels", headers=headers).json():
        page.request.delete(f"{server}/api/kernels/{kernel['id']}", headers=headers)
    page.close()


def test_every_cell_runs_without_complaint(notebook):
    unfolded = ".jp-Notebook .jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)"  # a folded cell has no number
    prompts = notebook.page.locator(unfolded).all_text_contents()
    assert [prompt for prompt in prompts if not re.search(r"\d", prompt)] == []
    assert notebook.page.locator("[data-mime-type$=error]").all_text_contents() == [] and notebook.errors == []


def test_nothing_asks_about_news(notebook):
    assert notebook.page.get_by_text("Jupyter news").count() == 0 and notebook.strangers == []


def test_every_picture_and_panel_fits_beside_the_list_of_files(notebook):  # a wide table scrolls within its output
    assert notebook.page.evaluate("wide(document)") == []


def test_every_control_is_reached_with_tab(notebook):
    page = notebook.page
    for root in page.locator(WIDGETS).all():
        for title in opened(notebook, root):
            assert root.evaluate("root => wide(root)") == [], title
            controls = root.evaluate("root => controls(root)")
            page.evaluate("document.activeElement.blur()")  # the widget before may have passed the focus on
            stops = root.evaluate("root => follow(root)")
            root.locator("[data-control='0']").focus()
            for _ in range(stops + 5):  # a box that scrolls is a stop too
                page.keyboard.press("Tab")
            reached = root.evaluate("root => [...root.reached]")
            assert not [control["label"] for control in controls if str(control["index"]) not in reached], title


def test_every_control_is_answered(notebook):
    moved = 0
    for root in notebook.page.locator(WIDGETS).all():
        for title in opened(notebook, root):
            controls = grouped(root.evaluate("root => controls(root)"))
            # what one control does can depend on where others stand: after them it is moved once more
            silent = [control for control in controls if not answered(notebook, root, *control)]
            silent = [control[0] for control in silent if not answered(notebook, root, *control, patience=WAIT)]
            assert not silent, title
            moved += len(controls)
    assert moved and notebook.errors == [] and notebook.strangers == []


def opened(notebook, root):
    """Opens the tabs of a cell's widget one after the other, with the keyboard, and yields their titles."""
    tabs = root.get_by_role("tab")
    for index in range(tabs.count()):
        root.locator("[role=tab][tabindex='0']").press("ArrowRight" if index else "Home")
        root.page.keyboard.press("Enter")
        root.locator(f"[role=tab]:nth-child({index + 1})[aria-selected=true]").wait_for()
        notebook.settle()
        root.page.wait_for_function("root => pictures(root) !== ''", arg=root.element_handle())
        yield tabs.nth(index).inner_text()
    if not tabs.count():
        yield "widget"


def grouped(controls):
    """(label, kind, indices) of what can be moved: a board of buttons counts as one, an upload comes last."""
    alone = [(control["label"], control["kind"], [control["index"]]) for control in controls if not control["board"]]
    board = [control["index"] for control in reversed(controls) if control["board"]]
    return sorted(
        alone + [("a word of the map", "button", board[:5])] * bool(board), key=lambda control: control[1] == "upload"
    )


def answered(notebook, root, label, kind, indices, patience=0.5):
    """Whether some key on a control changes what it should, up to `patience` seconds after the kernel has done all."""
    tiny = notebook.name != "explorer"
    if tiny and label in NO_LESION:
        return True
    kinds = ["pictures", "words"] if tiny or label in IN_WORDS else ["pictures"]
    for index, key in ((index, key) for index in indices for key in KEYS[kind]):
        root.evaluate("root => remember(root)")
        control = root.locator(f"[data-control='{index}']")
        if kind == "upload":
            with root.page.expect_file_chooser() as chooser:
                control.press(key)
            chooser.value.set_files({"name": "own.png", "mimeType": "image/png", "buffer": picture()})
        else:
            control.press(key)
        root.page.wait_for_timeout(100)
        notebook.settle()
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if root.evaluate("(root, kinds) => kinds.some(kind => changed(root, kind))", kinds):
                return True
            root.page.wait_for_timeout(50)
    return False


def picture():
    """A file with something like a lesion, which no data set holds."""
    image = Image.new("RGB", (120, 90), (224, 180, 160))
    image.paste((90, 50, 40), (40, 30, 80, 60))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
