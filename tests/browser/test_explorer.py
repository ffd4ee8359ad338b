"""What a reader sees and does in the explorer, with the mouse and with the keyboard alone."""

import re
from functools import partial

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
STOPS = ".noUi-handle, select, input[type=checkbox], button:not([tabindex='-1'])"


def panel(page):
    """The panel that is open."""
    return page.locator(".widget-tab-contents > :visible").first


def text(page):
    return panel(page).locator("p").inner_text()


def pictures(page):
    return panel(page).locator("img").evaluate_all("images => images.map(image => image.src).join()")


def changes(page, act):
    """Whether the panel shows other pictures or another sentence after an action."""
    before = pictures(page), text(page)
    act()
    for _ in range(100):
        if (pictures(page), text(page)) != before:
            return True
        page.wait_for_timeout(50)
    return False


def open_panel(page, title):
    page.locator(".widget-tab-bar .lm-TabBar-tab", has_text=title).click()
    panel(page).locator("img").first.wait_for()
    page.wait_for_timeout(300)


def test_the_notebook_runs_without_errors(page):
    assert page.locator("[data-mime-type$=error]").count() == 0 and page.errors == []
    assert [url for url in page.strangers if not url.startswith(("data:", "blob:"))] == []


def test_a_ranked_code_is_found_and_agrees_with_the_table(page):
    open_panel(page, "Codes")
    ranked = panel(page).locator(".widget-select select option").first
    code, share, cells = re.match(r"(\d+): (\d+)% of (\d+)", ranked.get_attribute("value")).groups()
    panel(page).locator(".widget-select select").select_option(index=0)
    page.get_by_text(f"Code {code} has {cells} of").wait_for()
    assert re.search(r"has [1-9]\d* cells here", text(page)), "the image has the code"
    first = page.locator(".jp-RenderedHTMLCommon table tbody tr").first.locator("td")
    assert first.first.inner_text() == code and f"{float(first.nth(3).inner_text()):.0%}" == f"{share}%"


def test_a_click_chooses_a_token(page):
    open_panel(page, "Codes")
    button = page.locator(".widget-gridbox button").nth(5)
    assert changes(page, button.click)
    code = re.search(r"code (\d+)", button.get_attribute("title")).group(1)
    assert f"Code {code} has" in text(page) and button.inner_text() == "×"


@pytest.mark.parametrize("title", ["Codes", "Masked tokens", "Attention", "Cut and mask"])
def test_every_control_answers_to_the_keyboard(page, title):
    open_panel(page, title)
    for control in panel(page).locator(STOPS).all():
        keys = ("Space",) if control.get_attribute("type") == "checkbox" else ("ArrowDown", "ArrowUp", "End", "Home")
        assert any(changes(page, partial(control.press, key)) for key in keys), control.inner_html()


def test_few_tab_stops(page):
    page.locator(".noUi-handle").first.focus()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('.jupyter-widgets') !== null"))
    assert sum(reached) < 30, "the map of tokens is no stop for each token"


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
