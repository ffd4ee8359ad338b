"""Copy a study to results/reference/: its tables, figures (as PNG) and settings, and the runs behind them, without
weights and without what follows from the rest of their records, which have a line for each column, so that git stores
once what runs on the same images share. Their environments are in one file, and so are the digests of the images
that they are scored on.

    python scripts/keep_study.py results/small-isic results/reference/isic

A second call brings the copy up to date. `.gitignore` keeps out of the repository what shows images of the data.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from tokencutseg.evaluation.per_image import without_derived
from tokencutseg.experiments.runs import ENVIRONMENT, RECORDS, SCORED, read_records
from tokencutseg.files import atomic_write, write_json

LEFT_OUT = shutil.ignore_patterns("*.safetensors", "*.ckpt", ".*", "notebooks", "*.html", "*.pdf")
ELSEWHERE = shutil.ignore_patterns("*.safetensors", "*.ckpt", ".*", "per_image-*.csv", ENVIRONMENT, SCORED)


def keep(study: Path, kept: Path) -> list[str]:
    """Copy `study` and its runs, with those that they build on, to `kept`; gives the runs' ids.

    Raises FileNotFoundError for a study without tables, or a run that is not beside it.
    """
    tables, store = sorted((study / "tables").glob("*.csv")), study.parent / "runs"
    if not tables:
        raise FileNotFoundError(f"{study} has no tables; run the study first")
    columns = [pd.read_csv(path, dtype=str).get("runs", pd.Series(dtype=str)) for path in tables]
    wanted, runs = sorted(set(" ".join(pd.concat(columns).dropna()).split())), []
    for run in wanted:  # grows: what a run builds on is wanted, too
        if run not in runs:
            runs.append(run)
            built_on = json.loads((store / run / "config.json").read_text())["dependencies"].values()
            wanted += [one for one in built_on if (store / one / "metrics.json").is_file()]
    shutil.copytree(study, kept, ignore=LEFT_OUT, dirs_exist_ok=True)
    for path in [*kept.glob("tables/*"), *kept.glob("figures/*")]:
        if not (study / path.relative_to(kept)).exists():
            path.unlink()
    for path in kept.glob("runs/*/"):
        if path.name not in runs:
            shutil.rmtree(path)
    for run in runs:
        shutil.copytree(store / run, kept / "runs" / run, ignore=ELSEWHERE, dirs_exist_ok=True)
        own, copy = store / run / RECORDS, kept / "runs" / run / RECORDS
        records = read_records(own) if own.is_file() else None
        if records is not None and not (copy.is_file() and _equal(records, read_records(copy))):
            with atomic_write(copy) as file:
                without_derived(records).T.to_csv(file, header=False)
    for name in (ENVIRONMENT, SCORED):  # of all runs in one file
        found = {run: path for run in sorted(runs) if (path := store / run / name).is_file()}
        write_json({run: json.loads(path.read_text()) for run, path in found.items()}, kept / "runs" / name)
    return runs


def _equal(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    return {*one} == {*other} and one.equals(other[list(one)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("kept", type=Path)
    arguments = parser.parse_args()
    try:
        print(f"{arguments.kept}: {len(keep(arguments.study, arguments.kept))} runs")
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
