"""A study's page, `index.html`: what was run, the main number, and what each notebook has found, from its tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from tokencutseg.experiments.claims import UNTESTABLE
from tokencutseg.files import atomic_write, read_csv
from tokencutseg.report.findings import SENTENCES, budget, claims_tested, headline
from tokencutseg.report.notebooks import KEPT, facts, named_outputs, read_facts
from tokencutseg.report.tables import in_words

SHOW_IMAGES = frozenset({
    "dataset_preview", "reconstructions", "token_maps", "codebook_embedding", "masking", "token_inpainting",
    "attention_maps", "predictions", "best_median_worst", "failures", "pipeline",
})  # fmt: skip
"""Figures that show images of the data, or patches decoded from them: not to be passed on where the images are not."""
KEY_FIGURES = ("reconstructions", "token_inpainting", "predictions", "cross_dataset", "stages")
"""The figure of each notebook that is seen at once; the others are folded."""
MAX_ROWS = 60
"""Rows of a table that the page shows; the CSV file has them all."""
_STYLE = """
* { box-sizing: border-box; overflow-wrap: anywhere; }
body { margin: 0 auto; max-width: 70rem; padding: .75rem 1.25rem 4rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { margin: 2.5rem 0 .25rem; border-top: 1px solid #ccc; padding-top: 1rem; }
.small, figcaption { color: #555; font-size: .875rem; margin: .25rem 0; } li { margin: .25rem 0; }
.found { font-size: 1.2rem; line-height: 1.4; margin: .75rem 0 .5rem; }
nav a { display: inline-block; margin-right: 1rem; padding: .2rem 0; }
figure { margin: .75rem 0; } img { display: block; width: 100%; max-width: 1080px; min-width: 38rem; }
summary { cursor: pointer; font-weight: 600; padding: .25rem 0; }
.scroll { overflow-x: auto; background: linear-gradient(90deg, #fff 2rem, #fff0),
  linear-gradient(-90deg, #fff 2rem, #fff0) 100% 0, linear-gradient(90deg, #0004, #0000),
  linear-gradient(-90deg, #0004, #0000) 100% 0; background-size: 3rem 100%, 3rem 100%, .8rem 100%, .8rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
table { border-collapse: collapse; font-size: .875rem; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd;
  min-width: 3.5rem; max-width: 24rem; overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; } thead th { vertical-align: bottom; }
@media (max-width: 60rem) { th, td { padding: .25rem .35rem; } }
@media (max-width: 40rem) { figcaption::before { content: "Scroll sideways for the rest. "; } }
@media print {
  @page { size: A4; margin: 1.5cm; } body { padding: 0; font-size: 10pt; } nav { display: none; }
  .scroll { overflow: visible; background: none; } figcaption::before { content: none; }
  img { min-width: 0; max-height: 11cm; object-fit: contain; object-position: left; }
  table { font-size: 5.5pt; } th, td { min-width: 0; padding: 1pt; overflow-wrap: break-word; }
  figure, tr, li { break-inside: avoid; } h2, summary { break-after: avoid; }
}
"""
"""A gradient at a side of a box says that there is more to scroll to."""


def write_index(study: Path, notebooks: Iterable[Path] = ()) -> Path:
    """Write ``index.html`` into the folder `study`, from what lies there, and return its path.

    First what was run, the method's picture and the main number; then a section per notebook (executed ones, and
    `notebooks`, their sources) with a sentence on each table, one figure, and folded the other figures and the tables.
    The page needs no network, and its links are relative.
    """
    there = [path for path in (study / "notebooks").glob("[!.]*.ipynb") if "cells" in read_facts(path)]
    executed = {path.stem: path for path in there if not KEPT.search(path.stem)}  # a user's own
    made = [path.relative_to(study).as_posix() for path in [*study.glob("tables/*.csv"), *study.glob("figures/*.png")]]
    links, sections, shown = "", "", set[str]()
    for name, path in sorted(({path.stem: path for path in notebooks} | executed).items()):
        outputs, title = [one for one in named_outputs(path) if one not in shown], escape(_title(path))
        links += f'<a href="#{escape(name)}">{title}</a> '
        sections += f'<h2 id="{escape(name)}">{title}</h2>\n' + _status(name, executed.get(name))
        sections += _section(study, outputs)
        shown |= set(outputs)
    if left := sorted(set(made) - shown):
        sections += f"<h2>Further tables and figures</h2>\n{_section(study, left)}"
    title = escape(study.absolute().name)
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<header>{_first_screen(study, title)}</header>\n"
        f'<nav aria-label="Sections">{links}</nav>\n<main>\n{sections}</main>\n</html>\n'
    )
    with atomic_write(study / "index.html") as file:
        file.write_text(page, encoding="utf-8")
    return study / "index.html"


def _first_screen(study: Path, title: str) -> str:
    """The title, what was run, what was found in a sentence, the pipeline, and the main score of each method."""
    main, claims, picture = study / "tables/main_results.csv", study / "tables/claims.csv", "figures/pipeline.png"
    parts = [f"<h1>TokenCutSeg: {title}</h1>\n<p class=small>{escape(_what_was_run(study))}</p>\n"]
    parts.append(f"<p class=found>{_sentence('main_results', main, headline)}</p>\n")
    if claims.is_file():
        parts.append(f"<p>{_sentence('claims', claims, claims_tested)}</p>\n")
    if (study / picture).is_file():
        parts.append(_figure(picture, "one test image on its way to a mask, by this study's model"))
    if main.is_file():
        parts.append(_made("main_results", main, _main_scores))
    return "".join(parts)


def _main_scores(table: pd.DataFrame) -> str:
    scores = table.query("reduction == 'per_image' and measure == 'iou' and n > 0")
    columns = ["train", "test", "n", "method", "initialisation", "seeds", "mean", "low", "high"]
    shown, said = in_words(scores[[*columns, "diff", "diff_low", "diff_high", "p_holm"]], "main_results")
    shown = shown.rename(columns={"mean": "lesion IoU [95 %]", "initialisation": "starts from"})
    rule = "Differences are paired, and significant where the interval leaves out zero and p is below 0.05."
    note = f"Means over images and trainings{'; in all rows: ' if said else ''}{escape(said)}. {rule}"
    return f'{_scroll("main scores", shown)}<p class="small">{note}</p>\n'


def _what_was_run(study: Path) -> str:
    config, machine = (read_facts(study / name) for name in ("config.json", "environment.json"))
    parts = [f"{key} {config[key]}" for key in ("preset", "recipe", "seed") if key in config]
    if "data" in config:
        parts.append("{0} × {0} pixels".format(config["data"]["image_size"]))
    if (path := study / "tables/budgets.csv").is_file():
        parts.append(_made("budgets", path, budget))
    seconds = sum(facts(path).get("seconds", 0) for path in study.glob("notebooks/[!.]*.ipynb"))
    parts += [f"notebooks executed in {seconds / 60:.0f} min"] if seconds else []
    parts += [str(machine[key]) for key in ("processor", "gpu") if machine.get(key)]
    return " · ".join(parts + ([f"commit {machine['commit'][:10]}"] if machine.get("commit") else []))


def _title(notebook: Path) -> str:
    """The heading of a notebook's first cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = re.match(r"# (.+)", "".join(cells[0]["source"]) if cells else "")
    return found[1] if found else notebook.stem


def _status(name: str, executed: Path | None) -> str:
    if executed is None:
        return "<p class=small>Not executed.</p>\n"
    seconds = facts(executed).get("seconds")
    state = "Not finished: it failed or was interrupted." if seconds is None else f"Executed in {seconds} s."
    kinds = {"html": "page", "ipynb": "notebook", "log": "log"}
    links = [f' · <a href="notebooks/{quote(name)}.{kind}">{word}</a>' for kind, word in kinds.items()]
    return f"<p class=small>{state}{''.join(links)}</p>\n"


def _section(study: Path, outputs: Iterable[str]) -> str:
    """What a notebook's tables say, its figures and tables; and what of them is not there."""
    there = [output for output in outputs if (study / output).is_file()]
    names = [Path(output).stem for output in there if output.endswith(".csv")]
    known = [name for name in names if name in SENTENCES]
    said = {name: _sentence(name, study / f"tables/{name}.csv", SENTENCES[name]) for name in known}
    items = "".join(f"<li><b>{_words(name).capitalize()}.</b> {text}</li>" for name, text in said.items() if text)
    figures = [output for output in there if output.endswith(".png")]
    first = [output for output in figures if Path(output).stem in KEY_FIGURES] or figures[:1]
    others = [_figure(output) for output in figures if output not in first]
    parts = [f"<ul>{items}</ul>\n" if items else ""]
    if missing := dict.fromkeys(_words(Path(output).stem) for output in outputs if output not in there):
        parts.append(f"<p>Not made, so that nothing is said of it here: {', '.join(missing)}.</p>\n")
    parts += map(_figure, first)
    if others:
        parts.append(f"<details><summary>More figures: {len(others)}</summary>{''.join(others)}</details>\n")
    return "".join([*parts, *(_table(study, name) for name in names)])


def _sentence(name: str, table: Path, say: Callable[[pd.DataFrame], str]) -> str:
    """What a table says, its first number in bold."""
    if not table.is_file():
        return f"There is no main result yet: the table {name} has not been written."
    bold = r"<strong>\g<0></strong>"
    return re.sub(r"[+−]?\d+\.\d+ \[.*?\]", bold, escape(_made(name, table, say)), count=1)


def _made(name: str, table: Path, make: Callable[[pd.DataFrame], str]) -> str:
    """What is made of a table, or that it cannot be: one of another version, or of a notebook of the user's own."""
    try:
        return make(read_csv(table))
    except (LookupError, NameError) as error:
        return f"The table {name} lacks what would be shown of it here: {error}."


def _figure(output: str, caption: str = "") -> str:
    name, link = Path(output).stem, quote(output)
    caption = caption or name.replace("_", " ")
    note = " (shows images of the data)" if name in SHOW_IMAGES else ""
    image = f'<a href="{link}"><img src="{link}" alt="{escape(caption)}"></a>'
    return f'<figure><div class="scroll">{image}</div><figcaption>{escape(caption)}{note}</figcaption></figure>\n'


def _table(study: Path, name: str) -> str:
    """A table, folded; of the claims those that the study decides, if any."""
    table = read_csv(study / f"tables/{name}.csv")
    whole, table = len(table), table[table["verdict"] != UNTESTABLE] if name == "claims" else table.head(MAX_ROWS)
    if table.empty:
        return ""
    shown, said = in_words(table, name)
    rows = f"{whole} rows" if len(table) == whole else f"{len(table)} of {whole} rows"
    note = f'{rows} · {escape(said)}{" · " if said else ""}<a href="tables/{quote(name)}.csv">all columns (csv)</a>'
    folded = f'<p class="small">{note}</p>{_scroll(_words(name), shown)}'
    return f"<details><summary>Table: {_words(name)}</summary>{folded}</details>\n"


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _scroll(name: str, table: pd.DataFrame) -> str:
    rows = re.sub(r"\[(\S+), (\S+)\]", r"[\1,&nbsp;\2]", table.to_html(index=False, border=0))
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{rows}</div>\n'
