"""A study's front page, `index.html`: what was run, and every notebook, table and figure that lies in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from tokencutseg.files import atomic_write
from tokencutseg.report.notebooks import facts, named_outputs

SHOW_IMAGES = frozenset({
    "dataset_preview", "reconstructions", "token_maps", "codebook_embedding", "masking", "token_inpainting",
    "attention_maps", "predictions", "best_median_worst", "failures", "pipeline",
})  # fmt: skip
"""Figures that show images of the data, or patches decoded from them: not to be passed on where the images are not."""
MAX_ROWS = 60
"""Rows of a table that the page shows; the CSV file has them all."""
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 76rem; padding: 1rem 1.25rem 4rem; font: 16px/1.5 system-ui, sans-serif; }}
nav a {{ margin-right: 1rem; }} h2 {{ margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }}
figure {{ margin: 1rem 0; }} img {{ max-width: 100%; height: auto; }} summary {{ cursor: pointer; font-weight: 600; }}
.scroll {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: .875rem; margin: .5rem 0; }}
th, td {{ padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }}
h1, p, figcaption {{ overflow-wrap: anywhere; }}
@media print {{ .scroll {{ overflow: visible; }} th, td {{ white-space: normal; overflow-wrap: anywhere; }} }}
</style>
<h1>{title}</h1>
<p>{settings}</p>
<nav aria-label="Sections">{links}</nav>
<main>
{body}</main>
"""


def write_index(study: Path, notebooks: Iterable[Path] = ()) -> Path:
    """Write ``index.html`` into the folder `study`, from what lies there, and return its path.

    One section per notebook (executed ones, and `notebooks`, their sources), with the tables and figures that it names;
    those that no notebook names come last. The page needs no network, and its links are relative.
    """
    executed = {path.stem: path for path in (study / "notebooks").glob("[!.]*.ipynb")}
    files = sorted([*study.glob("tables/*.csv"), *study.glob("figures/*.png")])
    left = [path.relative_to(study).as_posix() for path in files]
    sections = {}
    for name, path in sorted((executed | {path.stem: path for path in notebooks}).items()):
        outputs = [output for output in named_outputs(path) if (study / output).is_file()]
        sections[name] = _status(name, executed.get(name)) + "".join(_shown(study, output) for output in outputs)
        left = [output for output in left if output not in outputs]
    if left:
        sections["further"] = "".join(_shown(study, output) for output in left)
    described = [json.loads(path.read_text()) for path in study.glob("[ce]*.json")]  # config and environment
    named = ("preset", "recipe", "seed", "commit", "processor", "gpu")
    settings = " · ".join(f"{key} {part[key]}" for key in named for part in described if part.get(key) is not None)
    page = _PAGE.format(
        title=escape(study.absolute().name),
        settings=escape(settings),
        links="".join(f'<a href="#{name}">{name}</a> ' for name in map(escape, sections)),
        body="".join(f'<h2 id="{escape(name)}">{escape(name)}</h2>\n{text}' for name, text in sections.items()),
    )
    with atomic_write(study / "index.html") as file:
        file.write_text(page, encoding="utf-8")
    return study / "index.html"


def _status(name: str, executed: Path | None) -> str:
    if executed is None:
        return "<p>Not executed yet.</p>\n"
    seconds = facts(executed).get("seconds")
    state = "Not finished: it failed or was interrupted." if seconds is None else f"Done in {seconds} s."
    links = [f' · <a href="notebooks/{quote(name)}.{kind}">{kind}</a>' for kind in ("html", "ipynb", "log")]
    return f"<p>{state}{''.join(links)}</p>\n"


def _shown(study: Path, output: str) -> str:
    """One table, folded, or one figure."""
    name, link = escape(Path(output).stem), quote(output)
    if output.endswith(".png"):
        caption = f"{name}{' (shows images of the data)' if name in SHOW_IMAGES else ''}"
        image = f'<a href="{link}"><img loading="lazy" src="{link}" alt="{name}"></a>'
        return f"<figure><figcaption>{caption}</figcaption>{image}</figure>\n"
    table = pd.read_csv(study / output)
    rows = readable(table.head(MAX_ROWS)).to_html(index=False, border=0)
    count = f"{len(table)} rows" if len(table) <= MAX_ROWS else f"the first {MAX_ROWS} of {len(table)} rows"
    scroll = f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{rows}</div>'
    return f'<details><summary>{name}</summary>{count} · <a href="{link}">csv</a>{scroll}</details>\n'


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`table` as text, narrow enough to read: numbers rounded, and an estimate in one column with its interval.

    The bounds ``x_low`` and ``x_high`` belong to the column ``x``, and ``low`` and ``high`` to the column before them.
    From here on pandas shows texts whole, which it would cut after 50 characters: a reason is a sentence.
    """
    pd.set_option("display.max_colwidth", None)
    columns, read = list(table), {name: [_text(value) for value in table[name]] for name in table}
    for name, following in zip(columns, [*columns[1:], ""], strict=True):
        stem = "" if following == "low" else f"{name}_"
        if f"{stem}low" in columns:
            triples = zip(table[name], table[f"{stem}low"], table[f"{stem}high"], strict=True)
            read[name] = [_text(x) if pd.isna(a) else f"{x:.3f} [{a:.3f}, {b:.3f}]" for x, a, b in triples]
            del read[f"{stem}low"], read[f"{stem}high"]
    return pd.DataFrame(read, index=table.index)


def _text(value: Any) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
