"""`report.html`: one page that holds a whole study, or two side by side, without anything else beside it."""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from PIL import Image

from tokencutseg.data.images import DataError
from tokencutseg.study.claims import NOT_SUPPORTED, RULE, SUPPORTED
from tokencutseg.study.outputs import CAPTIONS, OUTPUTS
from tokencutseg.study.pages import Cell, done_record, table_file, table_html, table_of, words, write_page

FIGURE_ORDER = [name for notebook in sorted(OUTPUTS, key=lambda name: (name < "04", name))
                for name in OUTPUTS[notebook].figures]
"""Results first (notebooks 04 and 05), then how they came about."""
_COLOURS = {SUPPORTED: "good", NOT_SUPPORTED: "bad"}

_STYLE = """
.summary { font-size: 1.05rem; } .side { display: grid; gap: 1.25rem; } .side > * { min-width: 0; }
th { white-space: normal; vertical-align: bottom; } .whole { max-height: none; }
@media (min-width: 60rem) { .two { grid-template-columns: 1fr 1fr; } }
figure { margin: 1.75rem 0; break-inside: avoid; } figcaption { font-weight: 400; max-width: 46rem; }
.one img { width: auto; max-width: 100%; } details { margin: .5rem 0; } summary { cursor: pointer; }
th button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0; padding: 0;
            cursor: pointer; }
th button::after { content: "\\00a0↕"; color: var(--quiet); }
th[aria-sort=ascending] button::after { content: "\\00a0↑"; }
th[aria-sort=descending] button::after { content: "\\00a0↓"; }
td.wide { white-space: normal; min-width: 16rem; } .note { max-width: 46rem; }
@media print { :root { --paper: #fff; --ink: #000; --quiet: #333; --line: #bbb; --card: #fff; --link: #000;
                       --good: #1b6e3c; --bad: #a3340f; }
  body { max-width: none; padding: 0; font-size: 10pt; } .scroll { max-height: none; overflow: visible; border: 0; }
  th { position: static; } td, th { white-space: normal; padding: .15rem .4rem; } nav { display: none; }
  th button::after { content: ""; } }
"""
_SORT = """
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
"""


def write_report(studies: Sequence[Path], target: Path | None = None) -> Path:
    """Write one self-contained page about one study, or about two side by side, and return its path.

    `target` is ``report.html`` in the first study's folder where none is named. Claims and results come first, then
    figures, data, and how all of it was made. Raises DataError for a folder without tables.
    """
    for study in studies:
        if not any((study / "tables").glob("*.csv")):
            raise DataError(f"{study} holds no tables of a study; run its notebooks first, or name a folder such as "
                            f"results/quick-synthetic")
    target = target or studies[0] / "report.html"
    parameters = {study: _parameters(study) for study in studies}
    sections = {"Claims": _claims(studies), "Results": _results(studies), "Data": _data(studies),
                "Figures": _figures(studies), "Tables": _tables(studies),
                "How it was made": _making(studies, parameters, target)}
    title = escape(" and ".join(study.resolve().name for study in studies))
    return write_page(
        target, f"Report: {title}",
        f'<h1>TokenCutSeg: {title}</h1><p class="summary">{_summary(studies, parameters)}</p>',
        {heading.lower().replace(" ", "-"): (heading, content) for heading, content in sections.items() if content},
        f"<script>{_SORT}</script>", _STYLE)


# ---- what was found -----------------------------------------------------------------------------------------------

def _summary(studies: Sequence[Path], parameters: Mapping[Path, dict[str, Any]]) -> str:
    parts = []
    for study in studies:
        config = parameters[study] or _read_json(study / "config.json")
        table = _read(study, "claims")
        verdicts = {} if table is None else table["verdict"].value_counts().to_dict()
        counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        preset, recipe, seed = (config.get(key, "unknown") for key in ("preset", "recipe", "seed"))
        parts.append(f"<strong>{escape(study.resolve().name)}</strong>: preset {preset}, recipe {recipe}, seed {seed}"
                     + (f"; of {len(table)} claims {counted}" if counted else "") + ".")
    return "<br>".join(parts)


def _claims(studies: Sequence[Path]) -> str:
    frames = {study: table for study in studies if (table := _read(study, "claims")) is not None}
    rows: dict[str, dict[str, Cell]] = {}
    for study, table in frames.items():
        for row in table.itertuples():
            cells = rows.setdefault(row.claim, {"claim": Cell(row.claim, kind="wide"),
                                                "definition": Cell(row.definition),
                                                "published": Cell(row.published)})
            cells[f"measured{_of(study, studies)}"] = _interval(row.measured, row.low, row.high)
            cells[f"verdict{_of(study, studies)}"] = Cell(
                row.verdict, f"<strong>{escape(row.verdict)}</strong>", _COLOURS.get(row.verdict, ""))
            if len(studies) == 1:
                cells["why"] = Cell(row.reason, kind="wide")
    table = table_of(rows.values(), "Claims and verdicts", kind="whole")
    return f'{table}<p class="note">{escape(RULE)}</p>' if rows else ""


def _results(studies: Sequence[Path]) -> str:
    scores = {("image_lesion", "iou"): "lesion IoU per image", ("image_lesion", "dice"): "lesion Dice per image",
              ("pooled_two_class", "iou"): "IoU as the released code scores"}
    rows: dict[tuple[str, ...], dict[str, Cell]] = {}
    tables = {study: table for study in studies if (table := _read(study, "main_results")) is not None}
    for (definition, measure), label in scores.items():  # a score of one study beside the same of the other
        for study, table in tables.items():
            for key, part in table.groupby(["train", "test", "method", "recipe"], sort=False):
                cells = rows.setdefault(key, {"train → test": Cell(f"{key[0]} → {key[1]}"), "method": Cell(key[2]),
                                              "recipe": Cell(key[3]), "images": Cell(int(part["n"].iloc[0]))})
                known = part[(part["definition"] == definition) & (part["measure"] == measure)]
                score = known.iloc[0] if len(known) else {}
                cells[f"{label}{_of(study, studies)}"] = _interval(*map(score.get, ("mean", "low", "high")))
                if (definition, measure) == ("pooled_two_class", "iou"):
                    cells["published"] = Cell(score.get("published"))
    note = ("In brackets the bootstrap 95 % interval over test images. Published is the authors' mIoU, which the "
            "definition of the released code comes nearest to.")
    return f'{table_of(rows.values(), "Results", kind="whole")}<p class="note">{note}</p>' if rows else ""


def _data(studies: Sequence[Path]) -> str:
    def about(study: Path) -> str:
        results, leaks = _read(study, "main_results"), _read(study, "leakage")
        if results is None:
            return ""
        lines = [f"<li>{escape(train)} → {escape(test)}: "
                 f"{escape(note) if (note := part['note'].astype(object).fillna('').iloc[0]) else 'complete'}</li>"
                 for (train, test), part in results.groupby(["train", "test"], sort=False)]
        shared = ("" if leaks is None
                  else _heading("Images that two sets share", studies) + table_html(leaks, "Shared images"))
        return f"<ul>{''.join(lines)}</ul>{shared}"

    return _per_study(studies, about)


def _figures(studies: Sequence[Path]) -> str:
    there = {path.stem for study in studies for path in (study / "figures").glob("*.png")}
    parts = []
    for name in [name for name in FIGURE_ORDER if name in there] + sorted(there - set(FIGURE_ORDER)):
        images = "".join(_image(path, f"{words(name)}{escape(_of(study, studies))}: {escape(CAPTIONS.get(name, ''))}")
                         for study in studies if (path := study / "figures" / f"{name}.png").is_file())
        parts.append(f'<figure class="{_width(studies)}"><figcaption><h3>{words(name)}</h3>'
                     f'{escape(CAPTIONS.get(name, ""))}</figcaption><div class="side {_width(studies)}">{images}</div>'
                     "</figure>")
    return "".join(parts)


def _image(path: Path, alt: str) -> str:
    """The picture itself, as wide as its letters are then those of the page."""
    with Image.open(path) as image:
        width = round(0.75 * image.width)
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img width="{width}" src="data:image/png;base64,{data}" alt="{alt}">'


def _tables(studies: Sequence[Path]) -> str:
    def about(study: Path) -> str:
        return "".join(f"<details><summary>{words(path.stem)}</summary>{table_file(path)}</details>"
                       for path in sorted((study / "tables").glob("*.csv")))

    return _per_study(studies, about)


# ---- how it was made ----------------------------------------------------------------------------------------------

def _making(studies: Sequence[Path], parameters: Mapping[Path, dict[str, Any]], target: Path) -> str:
    def about(study: Path) -> str:
        parts = [f"<p>Made by <code>{escape(command)}</code></p>"] if (command := _command(parameters[study])) else []
        if (study / "about.md").is_file():
            parts.append(f"<p>{escape((study / 'about.md').read_text().strip())}</p>")
        notebooks = []
        for path in sorted((study / "notebooks").glob("*.ipynb")):
            record = done_record(study, path.stem)
            state = f"{record['seconds']:.0f} s" if record else "not finished"
            link = Path(os.path.relpath(path.with_suffix(".html"), target.parent)).as_posix()
            notebooks.append(f'<li><a href="{quote(link)}">{escape(path.stem)}</a>: {state}</li>')
        if notebooks:
            parts.append(f"{_heading('Notebooks', studies)}<ul>{''.join(notebooks)}</ul>")
        if (budgets := _read(study, "budgets")) is not None:
            parts.append(_heading("Trainings", studies) + table_html(budgets, "What each training cost"))
        if environment := _environment(study):
            frame = pd.DataFrame(environment.items(), columns=["what", "value"])
            parts.append(_heading("Environment", studies) + table_html(frame, "Environment"))
        return "".join(parts)

    return _per_study(studies, about)


def _parameters(study: Path) -> dict[str, Any]:
    """What the runner gave to the study's notebooks."""
    for path in sorted((study / "notebooks").glob("*.ipynb")):
        if parameters := json.loads(path.read_text()).get("metadata", {}).get("papermill", {}).get("parameters"):
            return parameters
    return {}


def _command(parameters: dict[str, Any]) -> str:
    if not parameters:
        return ""
    parts = ["./run_all.sh", *(item for key in ("preset", "recipe", "seed") for item in
                               (f"--{key}", str(parameters.get(key))))]
    if parameters.get("data"):
        parts += ["--data", "DIR"]
    settings = [f"{key}={json.dumps(value) if isinstance(value, bool) else value}"
                for key, value in parameters.get("overrides", {}).items()]
    return shlex.join([*parts, *(["--set", *settings] if settings else [])])


def _environment(study: Path) -> dict[str, Any]:
    files = [study / "environment.json", *sorted((study / "runs").glob("*/environment.json"))]
    found = next((content for path in files if (content := _read_json(path))), {})
    return {key: json.dumps(value) if isinstance(value, dict | list) else value for key, value in found.items()}


# ---- markup -------------------------------------------------------------------------------------------------------

def _read(study: Path, name: str) -> pd.DataFrame | None:
    path = study / "tables" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _per_study(studies: Sequence[Path], about: Any) -> str:
    """The same section of every study, one beside the other."""
    contents = {study: content for study in studies if (content := about(study))}
    parts = [f"<div>{f'<h3>{escape(study.resolve().name)}</h3>' if len(studies) > 1 else ''}{content}</div>"
             for study, content in contents.items()]
    return f'<div class="side">{"".join(parts)}</div>' if parts else ""


def _heading(text: str, studies: Sequence[Path]) -> str:
    level = "h3" if len(studies) == 1 else "h4"
    return f"<{level}>{text}</{level}>"


def _width(studies: Sequence[Path]) -> str:
    return "one" if len(studies) == 1 else "two"


def _of(study: Path, studies: Sequence[Path]) -> str:
    """What tells a study's columns and pictures from the other's."""
    return "" if len(studies) == 1 else f" ({study.resolve().name})"


def _interval(value: Any, low: Any, high: Any) -> Cell:
    if pd.isna(value):
        return Cell()
    return Cell(value, f"{value:.3f}" + ("" if pd.isna(low) else f" [{low:.3f}, {high:.3f}]"))
