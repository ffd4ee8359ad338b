"""Any page of a study, read back with a parser."""

from html.parser import HTMLParser

HEADINGS, VOID = ("h1", "h2", "h3", "h4"), ("meta", "img", "br")


class Page(HTMLParser):
    """Links, pictures with their alternative texts, headings with their levels, the cells of each table by its label,
    and all text in document order."""

    def __init__(self, html):
        super().__init__()
        self.links, self.images, self.headings, self.tables, self.text, self._open = [], [], [], {}, [], []
        self.feed(html)
        assert not self._open, f"unclosed: {self._open}"

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            assert values["alt"]
            self.images.append((values["src"], values["alt"]))
        if values.get("role") == "region":
            assert values["tabindex"] == "0", "a box that scrolls is reached by the keyboard"
            self._rows = self.tables.setdefault(values["aria-label"], [])
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            assert tag == "td" or values["scope"] == "col"
            self._rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] in ("style", "script"):
            return
        if data.strip():
            self.text.append(data.strip())
        if "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data
        elif self._open[-1] in HEADINGS:
            self.headings.append((int(self._open[-1][1]), data))
