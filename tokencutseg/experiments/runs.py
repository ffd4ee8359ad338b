"""The run store: one folder per training, named by what decided its outcome.

``runs/<stage>-<hash>/{config.json, environment.json, history.csv, metrics.json, per_image-N.csv, model.safetensors,
last.ckpt}``. The hash covers the configuration, the data's fingerprints and the runs it builds on. A run is done when
`metrics.json` has been renamed into place, and never otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from tokencutseg.config import Config
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.per_image import COLUMNS_VERSION
from tokencutseg.files import available_cores, write_csv, write_json
from tokencutseg.models.checkpoint import CONFIG, load, save_weights
from tokencutseg.training.processes import leads, wait_until

FORMAT = 3
"""Part of every hash: raise it when the same configuration would train to another result."""
ENVIRONMENT, HISTORY, METRICS = "environment.json", "history.csv", "metrics.json"
RECORDS = f"per_image-{COLUMNS_VERSION}.csv"
SCORED = "scored.json"
"""What the records of each split were scored on: `ImageSet.digest`."""


@dataclass(frozen=True)
class RunSpec:
    """What decides a training's outcome."""

    stage: str
    """vqgan, masked_gpt, segmentation or baseline."""
    config: Config
    covers: dict[str, Any]
    """The part of the configuration that matters to this stage."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the data and ids of the runs it builds on."""
    name: str | None = None
    """Which baseline."""

    @property
    def id(self) -> str:
        content = json.dumps([FORMAT, self.stage, self.name, self.covers, self.inputs], sort_keys=True)
        return f"{self.name or self.stage}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"

    def about(self) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "name": self.name,
            "config": self.config.to_dict(),
            "covers": self.covers,
            "inputs": self.inputs,
        }


@dataclass(frozen=True)
class Run:
    """A finished training."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def done(self) -> bool:
        return (self.folder / METRICS).is_file()

    @property
    def about(self) -> dict[str, Any]:
        return json.loads((self.folder / CONFIG).read_text())

    @property
    def config(self) -> Config:
        return Config.from_dict(self.about["config"])

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

    def records(self, images: ImageSet, score: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The per-image records on a split: scored once and then read from the run's table; scored anew where the split
        holds other images now, or other masks or other facts about them than when it was scored."""
        path, scored = self.folder / RECORDS, self.folder / SCORED
        dataset, split, name = images.dataset, images.split, f"{images.dataset}/{images.split}"
        with FileLock(self.folder / ".per_image.lock"):
            known = pd.read_csv(path, dtype={"id": str, "cluster": str}) if path.is_file() else pd.DataFrame()
            digests = json.loads(scored.read_text()) if scored.is_file() else {}
            if len(known):
                own = (known["dataset"] == dataset) & (known["split"] == split)
                same = digests.get(name, images.digest) == images.digest  # records from elsewhere may come without
                if same and known.loc[own, "id"].tolist() == images.ids:
                    return known[own].reset_index(drop=True)
                known = known[~own]
            fresh = score().assign(dataset=dataset, split=split)
            write_csv(pd.concat([known, fresh], ignore_index=True), path)
            write_json(digests | {name: images.digest}, scored)
        return fresh


class NotTrained(Exception):
    """A training is missing that was not to be started."""


class Busy(Exception):
    """A training is missing that another process is at."""


Training = Callable[[Path], tuple[dict[str, Tensor], dict[str, Any]]]
"""Trains in a folder; returns the weights to keep and what there is to say (metrics)."""


class RunStore:
    """All runs of a study."""

    def __init__(self, folder: Path, together: bool = False, training: bool = True) -> None:
        """`together`: several processes train each run, and all of them call `get_or_train` for it; `training`: whether
        runs that are missing are trained."""
        self.folder, self.together, self.training, self.waits = folder, together, training, True

    def get_or_train(self, spec: RunSpec, train: Training) -> Run:
        """A done run at once; else resume a broken one or start a missing one.

        Two processes that want the same run wait for each other, or, while `waits` is False, the later one raises Busy.
        Where several train one run together, the leading one writes. Raises NotTrained where the store does not train.
        """
        run = Run(self.folder / spec.id)
        if run.done:
            return run
        if not self.training:
            epochs = f", of which {len(run.history)} epochs are done" if (run.folder / HISTORY).is_file() else ""
            raise NotTrained(f"it needs the training {run.id} (recipe {spec.config.recipe}){epochs}")
        run.folder.mkdir(parents=True, exist_ok=True)
        if self.together and not leads():
            train(run.folder)
            wait_until(lambda: run.done, f"{run.folder} was not finished")
            return run
        try:
            lock = FileLock(run.folder / ".lock").acquire(timeout=-1 if self.waits else 0)
        except Timeout:
            raise Busy(run.id) from None
        with lock:
            if run.done:
                return run
            write_json(spec.about(), run.folder / CONFIG)
            write_json(environment(), run.folder / ENVIRONMENT)
            started = time.perf_counter()
            state, metrics = train(run.folder)
            save_weights(state, run.folder)
            write_json(metrics | {"last_session_seconds": time.perf_counter() - started}, run.folder / METRICS)
        return run


def environment() -> dict[str, Any]:
    """The machine and the versions that a result was obtained with."""
    packages = (
        "tokencutseg",
        "torch",
        "torchvision",
        "pytorch-lightning",
        "lpips",
        "numpy",
        "scikit-image",
        "segmentation-models-pytorch",
        "torchmetrics",
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in packages},
        "commit": _own_commit(),
    }


@functools.cache
def _own_commit() -> str | None:
    """The commit of this code, asked for once: it is loaded once, too."""
    return _commit(Path(__file__).parents[2])


def _commit(checkout: Path) -> str | None:
    """The commit that a checkout is at, with a + behind it where tracked files have changed since; None elsewhere."""

    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *command], capture_output=True, text=True, check=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()).resolve() != checkout.resolve():
            return None  # of another repository, in whose folders the package is installed
        return git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.CalledProcessError):  # there is no git, or no repository
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor()
