"""A study: a configuration and its data, the folder of its tables and figures, and the runs that they rest on.

``<results>/runs/`` is shared by all studies; ``<results>/<study name>/{tables, figures, config.json,
environment.json}`` is this one's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokencutseg.config import Config, ConfigError, configure
from tokencutseg.data.source import DataSource, open_source
from tokencutseg.experiments.pipeline import Pipeline
from tokencutseg.experiments.runs import ENVIRONMENT, RunStore, environment
from tokencutseg.files import atomic_write, resolve, results_folder, write_csv, write_json
from tokencutseg.models.checkpoint import CONFIG
from tokencutseg.models.hardware import Hardware

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = str | Path | Sequence[str | Path]


class Study(Pipeline):
    """What a notebook works with: finished runs and their scores (`Pipeline`), `table` and `figure` to write results.

    `jobs` local processes, or the cluster of the scheduler at `dask`, train what a table needs (`engine`): they open
    `data` themselves; without it trainings run in this process only.
    """

    def __init__(self, config: Config, source: DataSource, results: Path, hardware: Hardware | None = None) -> None:
        leading = hardware is None or hardware.leading
        super().__init__(config, source, RunStore(results / "runs", leading=leading), hardware)
        self.folder, self.results = results / study_name(config, source.study_name), results
        self.jobs, self.dask = 1, None
        self.data: Data | None = None

    @classmethod
    def open(
        cls,
        preset: str = "quick",
        recipe: str = "revised",
        seed: int = 0,
        data: Data = "",
        results: str | Path = "",
        overrides: dict[str, Any] | None = None,
        hardware: Hardware | None = None,
    ) -> Study:
        """Open a study as the notebooks do; for their paths see `resolve` and `results_folder`.

        Raises ConfigError and DataError, each in one sentence.
        """
        config = configure(preset, recipe, seed, overrides)
        if data:
            data = str(resolve(data)) if isinstance(data, str | Path) else [str(resolve(one)) for one in data]
        study = cls(config, open_source(data, config), results_folder(results), hardware)
        study.data = data
        return study

    def check_folder(self) -> None:
        """Raise ConfigError where files that are not of a study lie in this one's folder and could be overwritten."""
        ours = (ENVIRONMENT, "notebooks/*.done.json", "notebooks/*.log")
        if any(any(self.folder.glob(pattern)) for pattern in ours):
            return
        if any(path.is_file() and not path.name.startswith(".") for path in self.folder.rglob("*")):
            raise ConfigError(f"{self.folder} holds files that this program did not make; choose another --results")

    def claim_folder(self) -> None:
        """Make the study's folder with environment.json, by which `check_folder`, which comes first, knows it again."""
        self.check_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / ENVIRONMENT).exists():
            write_json(environment(), self.folder / ENVIRONMENT)

    def table(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Write tables/<name>.csv, its numbers with twelve significant digits, and the study's config.json and
        environment.json above it; return the table.

        Raises ValueError for an empty one, and ConfigError as `claim_folder` does.
        """
        if not len(table):
            raise ValueError(f"table {name!r} is empty")
        self.claim_folder()
        (self.folder / "tables").mkdir(exist_ok=True)
        write_json(self.config.to_dict(), self.folder / CONFIG)
        write_json(environment(), self.folder / ENVIRONMENT)
        short = table.select_dtypes("float").map(lambda value: float(f"{value:.12g}"))
        write_csv(table.assign(**short), self.folder / "tables" / f"{name}.csv")
        return table

    def figure(self, name: str, figure: Figure) -> Figure:
        """Write figures/<name>.pdf and .png and return the figure. Raises ConfigError as `claim_folder` does."""
        self.claim_folder()
        (self.folder / "figures").mkdir(exist_ok=True)
        formats: dict[str, dict[str, Any]] = {"pdf": {"metadata": {"CreationDate": None}}, "png": {"dpi": 150}}
        for suffix, options in formats.items():
            with atomic_write(self.folder / "figures" / f"{name}.{suffix}") as file:
                figure.savefig(file, format=suffix, **options)
        return figure


def study_name(config: Config, source_name: str) -> str:
    """`preset-source`, then only what departs from the default: recipe, seed, and a short hash of changed settings that
    are not of the plan.

    >>> study_name(configure("quick"), "synthetic")
    'quick-synthetic'
    """
    name = f"{config.preset}-{source_name}"
    if config.recipe != "revised":
        name += f"-{config.recipe}"
    if config.seed:
        name += f"-seed{config.seed}"
    if changed := config.changes(plan=False):
        name += f"-set-{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:8]}"
    return name
