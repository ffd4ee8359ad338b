"""What of a study can be passed on: no image of the data, and no weights, which make most of its size."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokencutseg.data.images import DataError
from tokencutseg.model.saved import CONFIG
from tokencutseg.study.outputs import SHOW_IMAGES
from tokencutseg.study.store import ENVIRONMENT, HISTORY, METRICS, RECORDS, Run


def publish(study: Path, target: Path) -> list[Path]:
    """Copy a study's tables, settings, the figures that show no image, and its finished trainings without weights.

    A training is its settings, environment, history, metrics and per-image scores: put into the `runs` of the same
    study on other machines, it gives the study's tables again without being trained. What is in `target` already stays,
    or is replaced by what is copied. Returns the copies. Raises DataError where there are no tables, and where `target`
    is the study itself.
    """
    if not any((study / "tables").glob("*.csv")):
        raise DataError(f"{study} holds no tables of a study; name a folder such as results/small-isic")
    if target.resolve() == study.resolve():
        raise DataError(f"{target} is the study itself; choose another folder")
    files = [study / CONFIG, study / ENVIRONMENT, *sorted((study / "tables").glob("*.csv")),
             *(path for path in sorted((study / "figures").glob("*")) if path.stem not in SHOW_IMAGES)]
    for run in sorted((study / "runs").glob("*/")):
        if Run(run).done or not (run / CONFIG).exists():  # Otsu's threshold has scores without a training
            files += [run / name for name in (CONFIG, ENVIRONMENT, HISTORY, METRICS, RECORDS)]
    copies = []
    for path in filter(Path.is_file, files):
        copy = target / path.relative_to(study)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copies.append(Path(shutil.copyfile(path, copy)))
    return copies
