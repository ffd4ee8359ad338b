"""The README's results table, made from committed tables. `python -m tokencutseg.study.readme` brings it up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from tokencutseg.study.runner import ROOT

REFERENCE = ROOT / "results" / "reference"
"""Committed results: one folder per study, with its tables and the command that made them."""
_BETWEEN = re.compile(r"(<!-- results -->\n).*(<!-- /results -->)", re.DOTALL)
NAMES = {"tokencutseg": "TokenCutSeg", "otsu": "Otsu threshold", "unet": "U-Net"}


def results_markdown(reference: Path = REFERENCE) -> str:
    """Every committed study's command and its main results: lesion IoU per image, and the released code's score."""
    parts = []
    for study in sorted(path.parent.parent for path in reference.glob("*/tables/main_results.csv")):
        table = _table(pd.read_csv(study / "tables/main_results.csv"))
        parts += [(study / "about.md").read_text().strip(), "", table, ""]
    return "\n".join(parts)


def with_results(readme: str, reference: Path = REFERENCE) -> str:
    """The README's text with its results brought up to date."""
    return _BETWEEN.sub(lambda found: found[1] + results_markdown(reference) + found[2], readme)


def _table(results: pd.DataFrame) -> str:
    lines = ["| train → test | method | recipe | images | lesion IoU per image | lesion Dice per image "
             "| IoU as the released code scores | published |", "|---|---|---|---|---|---|---|---|"]
    for (train, test, method, recipe), rows in results.groupby(["train", "test", "method", "recipe"], sort=False):
        cells = rows.set_index(["definition", "measure"])
        n, note = rows["n"].iloc[0], rows["note"].fillna("").iloc[0]
        published = cells["published"].get(("pooled_two_class", "iou"))
        shown = [_interval(cells, *key) for key in (("image_lesion", "iou"), ("image_lesion", "dice"),
                                                    ("pooled_two_class", "iou"))]
        lines.append(f"| {train} → {test} | {NAMES.get(method, method)} | {recipe if recipe != 'none' else ''} "
                     f"| {f'{n}' + (f' ({note})' if note else '') if n else note} | {' | '.join(shown)} "
                     f"| {'' if pd.isna(published) else f'{published:.4f}'} |")
    return "\n".join(lines)


def _interval(cells: pd.DataFrame, definition: str, measure: str) -> str:
    if (definition, measure) not in cells.index or pd.isna(cells.loc[(definition, measure), "mean"]):
        return ""
    row = cells.loc[(definition, measure)]
    return f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_results(path.read_text()))
