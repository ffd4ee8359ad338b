"""The study's front page, `index.html`, which shows every table and figure and links the executed notebooks; and what
any page of a study is made of."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

MAX_ROWS = 60
"""Rows of a table that the page shows; the CSV file has them all."""
_SPELLING = {"vqgan": "VQGAN", "gpt": "GPT", "deepcut": "DeepCut"}

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --quiet: #5f6670; --line: #d8dce2; --card: #f6f7f9;
        --link: #0b5cad; --good: #1b6e3c; --bad: #a3340f; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --ink: #e4e6e9; --quiet: #9aa2ad; --line: #343a42; --card: #1d2024; --link: #7db7f2;
          --good: #6fce95; --bad: #f39a73; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 3rem 0 .25rem; }
h2 { border-top: 1px solid var(--line); padding-top: 1.25rem; } h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .25rem 0; color: var(--quiet); } a { color: var(--link); } nav a { margin-right: 1rem; }
.good { color: var(--good); } .bad { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .4rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
             border-radius: 6px; }
.scroll { overflow: auto; width: fit-content; max-width: 100%; max-height: 32rem; border: 1px solid var(--line);
           border-radius: 6px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--card); } tr:last-child td { border-bottom: 0; }
th.number, td.number { text-align: right; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
"""


class Cell(NamedTuple):
    """Of a table: a value, and where `shown` does not say it all, its markup and a class."""

    value: Any = None
    text: str = ""
    kind: str = ""

    @property
    def is_text(self) -> bool:
        return isinstance(self.value, bool) or not isinstance(self.value, int | float | None)


def write_index(study: Path, notebooks: Iterable[Path] = ()) -> Path:
    """Write ``index.html`` into the folder `study`, from what lies there, and return its path.

    One section per executed notebook with the tables and figures that its record names; a notebook without a record
    has failed or was interrupted, and one of `notebooks` (sources) that was never executed is listed as missing. Tables
    and figures that no record names come last. The page needs no network: its style is inline, its links are relative.
    """
    executed = {path.stem: path for path in (study / "notebooks").glob("*.ipynb")}
    sources = {path.stem: path for path in notebooks}
    titles = {name: _title(path) for name, path in (executed | sources).items()}
    unclaimed = {
        kind: sorted(path.stem for path in (study / kind).glob(f"*{suffix}"))
        for kind, suffix in (("tables", ".csv"), ("figures", ".png"))
    }
    sections = {}
    for name in sorted(titles):
        record = done_record(study, name)
        for kind, left in unclaimed.items():
            unclaimed[kind] = [item for item in left if item not in record.get(kind, ())]
        sections[quote(name)] = (
            escape(titles[name]),
            _status(name, name in executed, record) + _contents(study, record),
        )
    end = (
        f"<h2>From earlier or unfinished executions</h2>{_contents(study, unclaimed)}"
        if any(unclaimed.values())
        else ""
    )
    title = escape(study.resolve().name)
    return write_page(study / "index.html", title, f"<h1>{title}</h1>", sections, end)


def write_page(
    target: Path, title: str, header: str, sections: Mapping[str, tuple[str, str]], end: str = "", style: str = ""
) -> Path:
    """Write a page that needs nothing from outside, so that nobody ever sees half of it, and return its path.

    All parts are markup: `sections` are (heading, content) by their anchor and have a list of contents before them,
    `end` follows them, and `style` is added to `STYLE`.
    """
    contents = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, (heading, _) in sections.items())
    body = "\n".join(
        f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{heading}</h2>{content}</section>'
        for anchor, (heading, content) in sections.items()
    )
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{STYLE}{style}</style>\n</head>\n<body>\n<header>{header}</header>\n"
        f'<nav aria-label="Sections">{contents}</nav>\n<main>{body}{end}</main>\n</body>\n</html>\n'
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".html.new")
    unfinished.write_text(page, encoding="utf-8")
    return unfinished.replace(target)


def table_file(path: Path) -> str:
    """A CSV file as `table_html`, called by its name."""
    try:
        return table_html(pd.read_csv(path), words(path.stem))
    except pd.errors.EmptyDataError:
        return "<p>This table is empty.</p>"


def table_html(frame: pd.DataFrame, label: str) -> str:
    """`frame` as an HTML table for reading: four significant digits, a dash for missing values, `MAX_ROWS` rows."""
    rows = [{column: Cell(value) for column, value in row.items()} for row in frame.head(MAX_ROWS).to_dict("records")]
    more = f"<p>The first {MAX_ROWS} of {len(frame)} rows.</p>" if len(frame) > MAX_ROWS else ""
    return table_of(rows, label, list(frame)) + more


def table_of(rows: Collection[Mapping[str, Cell]], label: str, columns: Sequence[str] = (), kind: str = "") -> str:
    """A table from its rows' cells by column; a row may lack some.

    It scrolls in a box of class `kind`, which a screen reader calls by its `label` (markup). A number that is rounded,
    and the lack of one, stand in `data-value` too, for a script that sorts.
    """
    columns = columns or list(dict.fromkeys(column for row in rows for column in row))
    texts = {column for row in rows for column, cell in row.items() if cell.is_text}
    kinds = {column: "text" if column in texts else "number" for column in columns}

    def entry(cell: Cell, kind: str) -> str:
        text, exact = cell.text or shown(cell.value), "" if pd.isna(cell.value) else str(cell.value)
        data = "" if cell.is_text or exact == text else f' data-value="{exact}"'
        return f'<td class="{cell.kind or kind}"{data}>{text}</td>'

    head = "".join(f'<th scope="col" class="{kind}">{escape(column)}</th>' for column, kind in kinds.items())
    body = "".join(
        "<tr>" + "".join(entry(row.get(column, Cell()), kind) for column, kind in kinds.items()) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def shown(value: Any) -> str:
    """A table's value for reading, escaped."""
    return escape(_plain(value))


def _plain(value: Any) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`table` as text, narrow enough to read: numbers rounded, and an estimate in one column with its interval.

    The bounds ``x_low`` and ``x_high`` belong to the column ``x``, and ``low`` and ``high`` to the column before them.
    From here on pandas shows texts whole, which it would cut after 50 characters: a reason is a sentence.
    """
    pd.set_option("display.max_colwidth", None)
    columns = list(table)
    bounds = {}  # of an estimate: the names of its two columns
    for low in columns:
        estimate = columns[columns.index(low) - 1] if low == "low" else low.removesuffix("_low")
        if low == "low" or (estimate != low and estimate in columns):
            bounds[estimate] = (low, low.removesuffix("low") + "high")
    read = {}
    for name in columns:
        if name in bounds:
            triples = zip(table[name], *(table[column] for column in bounds[name]), strict=True)
            read[name] = [
                f"{value:.3f} [{low:.3f}, {high:.3f}]" if pd.notna(low) else _plain(value)
                for value, low, high in triples
            ]
        elif not any(name in pair for pair in bounds.values()):
            read[name] = [_plain(value) for value in table[name]]
    return pd.DataFrame(read, index=table.index)


def _contents(study: Path, names: dict[str, list[str]]) -> str:
    tables = [
        f"<h3>{words(name)}</h3>{table_file(study / 'tables' / f'{name}.csv')}"
        f'<p><a href="tables/{quote(name)}.csv">{escape(name)}.csv</a></p>'
        for name in names.get("tables", ())
    ]
    figures = [
        f"<figure><figcaption>{words(name)}{_vector(study, name)}</figcaption>"
        f'<a href="figures/{quote(name)}.png"><img loading="lazy" src="figures/{quote(name)}.png" '
        f'alt="{words(name)}"></a></figure>'
        for name in names.get("figures", ())
    ]
    return "".join(tables) + (f'<h3>Figures</h3><div class="figures">{"".join(figures)}</div>' if figures else "")


def _vector(study: Path, name: str) -> str:
    """A link to the figure as PDF, where it was saved so."""
    there = (study / "figures" / f"{name}.pdf").is_file()
    return f' <a href="figures/{quote(name)}.pdf" aria-label="{words(name)} as PDF">PDF</a>' if there else ""


def _status(name: str, was_executed: bool, record: dict[str, Any]) -> str:
    if not was_executed:
        return '<p class="bad">Not executed yet.</p>'
    verdict = (
        f'<span class="good">Done in {record["seconds"]:.0f} s.</span>'
        if record
        else '<span class="bad">Not finished: it failed or was interrupted.</span>'
    )
    file = f"notebooks/{quote(name)}"
    return (
        f'<p>{verdict} <a href="{file}.html">Read the notebook</a> · <a href="{file}.ipynb">.ipynb</a> · '
        f'<a href="{file}.log">log</a></p>'
    )


def done_record(study: Path, name: str) -> dict[str, Any]:
    """What a finished notebook left about itself (seconds, tables, figures); empty for one that has not finished."""
    path = study / "notebooks" / f"{name}.done.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _title(notebook: Path) -> str:
    """The notebook's first heading, or its file name where there is none or a kill has cut the file short."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except ValueError:
        return notebook.stem
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return notebook.stem


def words(name: str) -> str:
    """A file's name as words: ``vqgan_curves`` is "VQGAN curves"."""
    first, *rest = (_SPELLING.get(word, word) for word in name.split("_"))
    return escape(" ".join([first[:1].upper() + first[1:], *rest]))
