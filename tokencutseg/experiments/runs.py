"""The run store: one folder per training, named by a hash of what decides its outcome, shared by all studies.

``<results>/runs/<stage or baseline>-<hash>/{config.json, environment.json, history.csv, metrics.json, per_image-N.csv,
scored.json, model.safetensors}``, and ``last.ckpt`` while it trains. A run is done when `metrics.json` has been renamed
into place, and never before.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from tokencutseg.config import Config
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.per_image import COLUMNS_VERSION, DECIMALS, with_derived
from tokencutseg.files import available_cores, locked, read_csv, write_csv, write_json
from tokencutseg.models.checkpoint import CONFIG, load, save_weights

FORMAT = 4
"""Part of every id. Raise it when the same settings would train to another result, as after a fix of a training."""
ENVIRONMENT, HISTORY, METRICS, CHECKPOINT = "environment.json", "history.csv", "metrics.json", "last.ckpt"
RECORDS, SCORED = f"per_image-{COLUMNS_VERSION}.csv", "scored.json"
"""Per-image records, and which images those of each split are of: ``dataset/split`` → `ImageSet.digest`."""
Trained = tuple[dict[str, Tensor] | None, dict[str, Any]]
"""The weights to keep, which only a process that leads has, and the metrics."""


@dataclass(frozen=True)
class RunSpec:
    """What decides the outcome of a training, and so its id; `config` is the whole configuration, for the record."""

    stage: str  # vqgan, masked_gpt, segmentation or baseline
    config: Config
    hashed_config: dict[str, Any]  # what this stage depends on, as far as it differs from the neutral defaults
    dependencies: dict[str, str] = field(default_factory=dict)  # ids of runs it builds on, fingerprints of the data
    name: str | None = None  # which baseline
    declaration: Any = None  # of that baseline: another network under the same name is another run

    @property
    def id(self) -> str:
        content = [FORMAT, self.stage, self.name, self.declaration, self.hashed_config, self.dependencies]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.name or self.stage}-{digest[:10]}"


@dataclass(frozen=True)
class Run:
    """One training, by its folder."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def done(self) -> bool:
        return (self.folder / METRICS).is_file()

    @property
    def metadata(self) -> dict[str, Any]:
        """The stage, the baseline's name, the whole config, hashed_config and dependencies."""
        return json.loads((self.folder / CONFIG).read_text())

    @property
    def metrics(self) -> dict[str, Any]:
        return json.loads((self.folder / METRICS).read_text())

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch."""
        return pd.read_csv(self.folder / HISTORY)

    def model(self) -> nn.Module:
        """The trained model, in evaluation mode on the CPU."""
        return load(self.folder)

    def scored(self, images: ImageSet) -> bool:
        """Whether there are records of exactly these images."""
        known = (self.folder / RECORDS).is_file() and self._digests().get(f"{images.dataset}/{images.split}")
        return known == images.digest

    def records(self, images: ImageSet, score: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The per-image records on a split: scored once and then read from the run's table; scored anew where the split
        holds other images, masks or facts about them than when it was scored."""
        split = (images.dataset, images.split)
        with locked(self.folder / ".records.lock"):
            if not self.scored(images):
                fresh = score().assign(dataset=images.dataset, split=images.split)
                others = [part for key, part in self._records().items() if key != split]
                digests = {key: digest for key, digest in self._digests().items() if key != "/".join(split)}
                write_json(digests, self.folder / SCORED)  # first, lest a kill leave new records with an old digest
                write_csv(pd.concat([*others, fresh], ignore_index=True), self.folder / RECORDS)
                write_json(digests | {"/".join(split): images.digest}, self.folder / SCORED)
            return self._records()[split].reset_index(drop=True)

    def _digests(self) -> dict[str, str]:
        return json.loads((self.folder / SCORED).read_text()) if (self.folder / SCORED).is_file() else {}

    def _records(self) -> dict[tuple[str, str], pd.DataFrame]:
        path = self.folder / RECORDS
        return dict(iter(read_records(path).groupby(["dataset", "split"], sort=False))) if path.is_file() else {}


def read_records(path: Path) -> pd.DataFrame:
    """Records from a run's file, rounded to `DECIMALS`; also committed ones, which lack what follows from the rest."""
    text = io.StringIO(path.read_text("utf-8"))
    first = text.readline().rstrip().split(",")
    text.seek(0)
    if not {"id", "dataset", "split"} <= {*first}:  # committed: a line for each column
        lines = pd.read_csv(text, header=None, index_col=0, dtype=str, keep_default_na=False)
        text = io.StringIO(lines.T.to_csv(index=False))
    table = read_csv(text, float_precision="round_trip")
    return (table if "iou" in table else with_derived(table)).round(DECIMALS)


@dataclass
class RunStore:
    """All runs of a results folder."""

    folder: Path
    leading: bool = True  # whether this process writes, where several train each run and all call `get_or_train`

    def get_or_train(self, spec: RunSpec, train: Callable[[Path], Trained]) -> Run:
        """A done run at once; else resume a broken one or start a missing one.

        Two processes that want the same run wait for each other. Raises OSError where the disk is full or the folder is
        removed in the middle.
        """
        run = Run(self.folder / spec.id)
        if run.done:
            return run
        run.folder.mkdir(parents=True, exist_ok=True)
        if self.leading:
            with locked(run.folder / ".lock"):
                if not run.done:
                    self._train(run.folder, spec, train)
        else:
            train(run.folder)
            while not run.done:  # a barrier would want the processes that came later, too
                time.sleep(0.1)
        return run

    def _train(self, folder: Path, spec: RunSpec, train: Callable[[Path], Trained]) -> None:
        parts = {name: getattr(spec, name) for name in ("stage", "name", "hashed_config", "dependencies")}
        write_json(parts | {"config": spec.config.to_dict()}, folder / CONFIG)
        write_json(environment(), folder / ENVIRONMENT)
        state, metrics = train(folder)
        assert state is not None, "only processes that do not lead have no weights"
        save_weights(state, folder)
        write_json(metrics, folder / METRICS)
        (folder / CHECKPOINT).unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """The machine and the versions that a result was obtained with."""
    packages = ["tokencutseg", "torch", "torchvision", "pytorch-lightning", "lpips", "numpy", "scikit-image"]
    packages += ["segmentation-models-pytorch", "torchmetrics"]
    info = Path("/proc/cpuinfo")
    processor = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor[1] if processor else platform.processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in packages},
        "commit": commit(Path(__file__).parents[2]),
    }


@functools.cache  # asked for once: the code is loaded once, too
def commit(checkout: Path) -> str | None:
    """The commit that a checkout is at, with a + behind it where tracked files have changed since; None elsewhere."""
    if not (checkout / ".git").exists():  # perhaps installed in a folder of another repository
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # there is no git, or no commit
        return None
