"""What a reader sees and does in the explorer, with the mouse and with the keyboard alone."""

import base64
import io
import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
TITLES = ("Codes", "Decoding", "Masked tokens", "Attention", "Cut and mask")
STOPS = ".noUi-handle, select, button:not([tabindex='-1']):not([disabled])"


def panel(page):
    """The panel that is open."""
    return page.locator(".widget-tab-contents > :visible").first


def text(page):
    return panel(page).locator("p").inner_text()


def sources(page):
    return panel(page).locator("img").evaluate_all("images => images.map(image => image.src)")


def pixels(source):
    """The picture of an <img> (h, w, 3)."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def frame(source, cells=16):
    """(16, 16) bool of the cells whose four corners are yellow."""
    image = pixels(source)
    f = len(image) // cells
    yellow = (image == (255, 221, 0)).all(2).reshape(cells, f, cells, f)
    return yellow[:, [0, -1]][..., [0, -1]].all((1, 3))


def chosen(page):
    """The cell that is framed in the image on the left."""
    (cell,) = np.argwhere(frame(page.locator(".token-board").locator("xpath=..").locator("img").get_attribute("src")))
    return tuple(cell.tolist())


def changes(page, act):
    """Whether the panel shows other pictures or another sentence after an action."""
    before = sources(page), text(page)
    act()
    for _ in range(200):
        if (sources(page), text(page)) != before:
            return True
        page.wait_for_timeout(50)
    return False


def open_panel(page, title):
    page.locator(".widget-tab-bar .lm-TabBar-tab", has_text=title).click()
    panel(page).locator("img").first.wait_for()
    page.wait_for_timeout(1000)


def test_it_opens_at_once_without_code_or_errors(page):
    assert re.fullmatch(r"device: .*\nhttp://127.0.0.1:\d+/voila/\S+ .*\n", page.printed), "device and address"
    assert "Starting" in page.while_starting and not page.locator("#loading").count()
    assert page.errors == [] and page.strangers == []
    assert not page.locator(".jp-InputArea-editor:visible, .jp-OutputArea-output[data-mime-type*=error]").count()
    shown = page.locator("#rendered_cells").inner_text()
    assert "comes with the package" in shown
    assert re.search(r"\d,\d{3} masks", shown) and re.search(r"IoU .*0\.\d{3}", shown)


@pytest.mark.parametrize("title", TITLES)
def test_every_control_answers_to_the_keyboard(page, title):
    open_panel(page, title)
    for control in panel(page).locator(STOPS).all():
        name = control.evaluate("control => control.tagName")
        keys = ("Space",) if name == "BUTTON" else ("ArrowDown", "ArrowUp", "End", "Home")
        assert any(changes(page, partial(control.press, key)) for key in keys), control.inner_html()
    board = page.locator(".token-board button[tabindex='0']")
    y, x = chosen(page)
    key, place = ("ArrowLeft", (y, x - 1)) if x else ("ArrowRight", (y, x + 1))
    board.focus()
    page.keyboard.press(key)
    page.wait_for_timeout(2000)
    assert chosen(page) == place


def test_few_tab_stops_and_large_targets(page):
    open_panel(page, "Codes")
    page.locator(".noUi-handle").first.focus()
    stops = []
    for _ in range(20):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.closest('.token-board') !== null"))
    assert 1 <= sum(stops) <= 3, "the board is one stop"
    sizes = """all => all.filter(one => one.offsetParent).map(one => one.getBoundingClientRect())
        .map(box => Math.min(box.width, box.height))"""
    assert min(page.locator(f"{STOPS}, .token-board button, .lm-TabBar-tab").evaluate_all(sizes)) >= 24


@pytest.mark.parametrize("width", [1280, 900])
def test_nothing_is_cut(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    for title in TITLES:
        open_panel(page, title)
        cut = "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML.slice(0, 80))"
        assert page.locator("#rendered_cells, .widget-tab-contents, .lm-TabBar-tab").evaluate_all(cut) == [], title
    page.set_viewport_size({"width": 1280, "height": 800})


def test_axe_finds_nothing(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    for title in TITLES:
        open_panel(page, title)
        found = axe.run(page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found] == [], title


def test_the_connection_outlives_large_uploads(page, tmp_path):
    open_panel(page, "Cut and mask")
    noise = np.random.default_rng(0).integers(0, 256, (2200, 2200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "phone.png", compress_level=0)  # 14.5 MB
    (tmp_path / "huge.jpg").write_bytes(bytes(55_000_000))
    for name, shown in (("phone.png", "phone.png"), ("huge.jpg", "huge.jpg has 55 MB")):
        with page.expect_file_chooser() as chooser:
            page.locator("button.widget-upload").click()
        chooser.value.set_files(tmp_path / name)
        page.get_by_text(shown).wait_for()
    assert changes(page, page.get_by_role("button", name="back to the set").click)
