"""Write docs/results.md from the tables of the committed study, and their numbers into the prose of other documents.

    python scripts/make_results.py            # a test checks that it would change nothing

Prose names a number by table, labels that leave one row of it (of any column, or of the one named as in
``test=isic2017``), and column, with a format behind a colon:
``<!--=label_efficiency/fraction=1.0/unet/test=isic2017/mean:.3f-->0.755<!--/-->``. The format ``ci`` adds the 95 %
interval, with signs where the number is a difference; ``ci*`` ends in a star where that is significant. Numbers only,
no sentences.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from tokencutseg.report.tables import bounds, in_words, interval

ROOT = Path(__file__).resolve().parents[1]
TABLES_FOLDER = ROOT / "results/reference/isic/tables"
DOCUMENTS = ("README.md", "docs/reproduction.md", "tokencutseg/pretrained/README.md")
NUMBER = re.compile(r"<!--=([^:>]+?)(?::([^\s>]+?))?-->.*?<!--/-->")
MEASURES = 'measure == "iou" or (reduction == "per_image" and measure in ("dice", "nsd", "hd95"))'
PRIMARY = 'train == "isic2017"'
SHORT = 'measure == "iou" and reduction in ("per_image", "micro_two_class")'
TABLES = {
    "main_results": ("Main results", f"n == 0 or {PRIMARY} and ({MEASURES}) or {SHORT}"),
    "pairwise": ("Every two methods on the same images", f'{PRIMARY} and measure == "iou"'),
    "label_efficiency": ("Scores by share of the labels", ""),
    "baselines": (
        "Baselines under one budget",
        'reduction == "per_image" and (measure == "iou" or test == "isic2017" and measure in ("nsd", "hd95"))',
    ),
    "stages": ("What each stage adds (short trainings, validation images)", ""),
    "graph_radius": ("Does the mask need the graph's edges? (short trainings, validation images)", ""),
    "codebook_size": ("Sizes of the codebook (short trainings, validation images)", ""),
    "revised_steps": ("From described to revised, step by step (short trainings, validation images)", ""),
    "score_by_group": ("Lesion IoU by group of images", PRIMARY),
    "leakage": ("Scores without images shared between splits", "iou == iou"),
    "reconstruction": ("Reconstruction by the tokenizer", ""),
    "masked_prediction": ("Masked-token prediction", ""),
    "linear_probe": ("What a linear probe reads from frozen features (test images)", ""),
    "feature_quality": ("Frozen features under equal heads (few masks, validation images)", ""),
    "budgets": ("What each training cost", ""),
    "efficiency": ("What one image costs (two CPU cores)", ""),
    "claims": ("Claims", 'not reason.str.startswith("this study has not written")'),
}
"""The tables that the page shows: a title, and a query of the rows."""
LEFT_OUT = ["p", "runs", "note", "recipe", "table", "published", "complete", "same_id", "same_content"]
INTRODUCTION = """Written by `scripts/make_results.py` from `results/reference/isic/`; the CSV files hold all measures
and run ids. TokenCutSeg without a recipe behind it is `revised`. Brackets: 95 % intervals, of differences paired. What
they rest on: [report](reproduction.md)."""


def number(name: str, form: str | None = None) -> str:
    """The number of this name. Raises ValueError where the name leaves no row, or several."""
    table, *labels, column = name.split("/")
    rows = pd.read_csv(TABLES_FOLDER / f"{table}.csv", dtype=str, keep_default_na=False)
    for label in labels:
        where, _, wanted = label.rpartition("=")
        rows = rows.loc[rows[where] == wanted if where else (rows == wanted).any(axis=1)]
    if len(rows) != 1:
        raise ValueError(f"{name} names {len(rows)} rows of {table}")
    if form in ("ci", "ci*"):
        value, low, high = (float(rows[name].iloc[0]) for name in (column, *(bounds(list(rows), column) or ())))
        significant = form == "ci*" and low * high > 0 and float(rows["p_holm"].iloc[0]) < 0.05
        return interval(value, low, high, signed=column == "diff") + "*" * significant
    return format(float(rows[column].iloc[0]), form or ".3f").replace("-", "−")


def inject(text: str) -> str:
    """A document with the number of the committed tables in each of its marks."""

    def marked(found: re.Match[str]) -> str:
        name, form = found.groups()
        return f"<!--={name}{':' + form if form else ''}-->{number(name, form)}<!--/-->"

    return NUMBER.sub(marked, text)


def printed(name: str, table: pd.DataFrame) -> str:
    """The table of that name in Markdown, in words; what is the same in all rows is said before."""
    read, same = in_words(table.drop(columns=LEFT_OUT, errors="ignore"), name)
    if "note" in table and "mean" in read:
        read.loc[table["n"] == 0, "mean"] = table["note"]  # why there is none
    rows = [list(read), ["---"] * len(read.columns), *read.to_numpy().tolist()]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{same}\n\n{lines}" if same else lines


def results() -> str:
    """The page of all tables."""
    parts = ["# Results", INTRODUCTION]
    for name, (title, query) in TABLES.items():
        path = TABLES_FOLDER / f"{name}.csv"
        rows = pd.read_csv(path).query(query) if query else pd.read_csv(path)
        parts += [f"## {title}", f"[{name}.csv](../{path.relative_to(ROOT).as_posix()})", printed(name, rows)]
    return "\n\n".join(parts) + "\n"


def documents() -> dict[str, str]:
    """What each document should read."""
    return {"docs/results.md": results()} | {name: inject((ROOT / name).read_text("utf-8")) for name in DOCUMENTS}


if __name__ == "__main__":
    for name, text in documents().items():
        (ROOT / name).write_text(text, "utf-8")
