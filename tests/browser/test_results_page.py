"""The results page of a committed study, on a wide screen, a tablet and a telephone, and on paper."""

import shutil

import pytest
from PIL import Image

from tokencutseg.files import CHECKOUT
from tokencutseg.report.index import write_index
from tokencutseg.report.notebooks import find_notebooks

A4 = 680  # CSS pixels between margins of 1.5 cm
TOO_WIDE = """(selector => [...document.querySelectorAll(selector)]
    .filter(box => box.scrollWidth > box.clientWidth).map(box => box.ariaLabel || box.tagName))"""


@pytest.mark.slow
def test_nothing_is_cut(browser, tmp_path):
    reference = CHECKOUT / "results/reference/isic"
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs"))
    (tmp_path / "figures").mkdir(exist_ok=True)
    for name in ("pipeline", "stages", "baselines"):
        Image.new("RGB", (1080, 400)).save(tmp_path / "figures" / f"{name}.png")
    address = write_index(tmp_path, find_notebooks()).as_uri()
    for width, media in ((1280, "screen"), (900, "screen"), (390, "screen"), (A4, "print")):
        page = browser.new_page(viewport={"width": width, "height": 800})
        requests = []
        page.on("request", lambda request, requests=requests: requests.append(request.url))
        page.emulate_media(media=media)
        page.goto(address)
        assert page.evaluate(f"{TOO_WIDE}('html')") == []
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate(f"{TOO_WIDE}('html')") == []
        boxes = page.evaluate(f"{TOO_WIDE}('.scroll')")
        assert ("main scores" in boxes) == (width == 390), "paper does not scroll, and a wide screen need not"
        assert media == "screen" or boxes == []
        assert all(url.startswith("file:") for url in requests)
        page.close()
