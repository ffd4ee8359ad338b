"""The written pages of a study, opened from the disk: nothing fetched, no complaint, readable, sorted by keyboard."""

import pytest

from tokencutseg.study.report import write_report


@pytest.fixture(scope="module", params=["index", "report"])
def page_path(request, tiny_study, tmp_path_factory):
    if request.param == "index":
        return tiny_study / "index.html"
    return write_report([tiny_study], tmp_path_factory.mktemp("report") / "report.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_is_accessible_and_fetches_nothing(page_path, scheme, watch):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    watched = watch("file:", color_scheme=scheme)
    page = watched.page
    page.goto(page_path.as_uri())
    found = axe.Axe().run(page).response["violations"]  # contrast among them
    grave = [(rule["id"], node["html"][:120], node["failureSummary"]) for rule in found
             if rule["impact"] in ("serious", "critical") for node in rule["nodes"]]
    assert grave == []
    missing = page.evaluate("""async () => {
        const load = async image => { image.loading = "eager"; await image.decode().catch(() => {}); };
        await Promise.all([...document.images].map(load));
        return [...document.images].filter(image => !image.naturalWidth).map(image => image.alt);
    }""")
    assert page.locator("img").count() and missing == []
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert watched.errors == [] and watched.strangers == []
    page.close()


def test_a_table_is_sorted_with_the_keyboard(page_path, watch):
    watched = watch("file:")
    page = watched.page
    page.goto(page_path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    tables = [table for table in page.locator("table:has(thead button)").all() if table.evaluate(NUMBERS) >= 0]
    assert tables or page_path.name == "index.html"
    for table in tables[:3]:
        head = table.locator("thead th").nth(table.evaluate(NUMBERS))
        for direction in ("ascending", "descending"):
            head.get_by_role("button").press("Enter")
            assert head.get_attribute("aria-sort") == direction
            keys = [float(key) for key in head.evaluate(KEYS)]
            assert keys == sorted(keys, reverse=direction == "descending")
    assert watched.errors == []
    page.close()


KEYS = """head => [...head.closest("table").tBodies[0].rows].map(row => row.cells[head.cellIndex])
    .map(cell => cell.dataset.value ?? cell.textContent)"""
NUMBERS = f"""table => [...table.tHead.rows[0].cells].map({KEYS}).findIndex(
    keys => new Set(keys).size > 1 && keys.every(key => key !== "" && !isNaN(key)))"""
"""The first column of different numbers, -1 where there is none."""


def test_an_executed_notebook_needs_no_network(tiny_study, watch):
    watched = watch("file:")
    page = watched.page
    page.goto((tiny_study / "notebooks" / "03_deepcut_seg.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    formulas = page.locator("math").all()
    assert len(formulas) > 20 and all(formula.bounding_box()["width"] > 1 for formula in formulas)
    assert "$" not in " ".join(page.locator(".jp-MarkdownOutput").all_inner_texts())
    assert watched.errors == [] and watched.strangers == []
    page.close()
