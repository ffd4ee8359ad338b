"""The run store: one folder per training, named by a hash of what decides its outcome, shared by all studies.

``<results>/runs/<stage or baseline>-<hash>/{config.json, environment.json, history.csv, metrics.json, per_image-N.csv,
scored.json, model.safetensors}``, and ``last.ckpt`` while it trains. A run is done when `metrics.json` has been renamed
into place, and never before.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from filelock import FileLock, SoftFileLock
from torch import Tensor, nn

from tokencutseg.config import Config
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.per_image import COLUMNS_VERSION
from tokencutseg.files import available_cores, write_csv, write_json
from tokencutseg.models.checkpoint import CONFIG, load, save_weights

FORMAT = 4
"""Part of every id. Raise it when the same settings would train to another result: after a fix of a training, or when
the neutral default of a setting changes."""
ENVIRONMENT, HISTORY, METRICS, CHECKPOINT = "environment.json", "history.csv", "metrics.json", "last.ckpt"
RECORDS = f"per_image-{COLUMNS_VERSION}.csv"
SCORED = "scored.json"
"""Which images the records of each split are of: ``dataset/split`` → `ImageSet.digest`."""


@dataclass(frozen=True)
class RunSpec:
    """What decides the outcome of a training, and so its id."""

    stage: str
    """vqgan, masked_gpt, segmentation or baseline."""
    config: Config
    hashed_config: dict[str, Any]
    """The part of the configuration that this stage depends on: what differs from the neutral defaults."""
    dependencies: dict[str, str] = field(default_factory=dict)
    """Fingerprints of the data and ids of the runs it builds on."""
    name: str | None = None
    """Which baseline."""
    declaration: Any = None
    """What that baseline is declared as: another network under the same name is another run."""

    @property
    def id(self) -> str:
        content = [FORMAT, self.stage, self.name, self.declaration, self.hashed_config, self.dependencies]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return f"{self.name or self.stage}-{digest[:10]}"

    def metadata(self) -> dict[str, Any]:
        """The content of the run's config.json."""
        parts = ("stage", "name", "hashed_config", "dependencies")
        return {part: getattr(self, part) for part in parts} | {"config": self.config.to_dict()}


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
        return json.loads((self.folder / CONFIG).read_text())

    @property
    def config(self) -> Config:
        return Config.from_dict(self.metadata["config"])

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
        path = self.folder / SCORED
        digests = json.loads(path.read_text()) if path.is_file() and (self.folder / RECORDS).is_file() else {}
        return digests.get(f"{images.dataset}/{images.split}") == images.digest

    def records(self, images: ImageSet, score: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The per-image records on a split: scored once and then read from the run's table; scored anew where the split
        holds other images, masks or facts about them than when it was scored."""
        path, scored, split = self.folder / RECORDS, self.folder / SCORED, (images.dataset, images.split)
        with locked(self.folder / ".records.lock"), one_sentence_when_full(self.folder):
            if not self.scored(images):
                fresh = score().assign(dataset=images.dataset, split=images.split)
                others = [part for key, part in self._records().items() if key != split]
                write_csv(pd.concat([*others, fresh], ignore_index=True), path)
                digests = json.loads(scored.read_text()) if scored.is_file() else {}
                write_json(digests | {"/".join(split): images.digest}, scored)
            return self._records()[split].reset_index(drop=True)

    def _records(self) -> dict[tuple[str, str], pd.DataFrame]:
        if not (self.folder / RECORDS).is_file():
            return {}
        types = {"id": str, "cluster": str}
        table = pd.read_csv(self.folder / RECORDS, dtype=types, float_precision="round_trip")
        return dict(iter(table.groupby(["dataset", "split"], sort=False)))


TrainFunction = Callable[[Path], tuple[dict[str, Tensor] | None, dict[str, Any]]]
"""Trains in a folder; returns the weights to keep and the metrics."""


class NotTrained(Exception):
    """A training is missing in a store that does not train."""


class RunStore:
    """All runs of a results folder."""

    def __init__(self, folder: str | Path, training: bool = True, leading: bool = True) -> None:
        """`training`: whether missing runs are trained; `leading`: whether this process writes, where several processes
        train each run together and all of them call `get_or_train`."""
        self.folder, self.training, self.leading = Path(folder), training, leading

    def get_or_train(self, spec: RunSpec, train: TrainFunction) -> Run:
        """A done run at once; else resume a broken one or start a missing one.

        Two processes that want the same run wait for each other. Raises NotTrained where the store does not train, and
        OSError where the disk is full.
        """
        run = Run(self.folder / spec.id)
        if run.done:
            return run
        if not self.training:
            raise NotTrained(f"the training {run.id} (recipe {spec.config.recipe}) is not done in {self.folder}")
        run.folder.mkdir(parents=True, exist_ok=True)
        if self.leading:
            with locked(run.folder / ".lock"), one_sentence_when_full(run.folder):
                if not run.done:
                    self._train(run, spec, train)
        else:
            train(run.folder)
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # the others go on when the leading process has written
        return run

    def _train(self, run: Run, spec: RunSpec, train: TrainFunction) -> None:
        write_json(spec.metadata(), run.folder / CONFIG)
        write_json(environment(), run.folder / ENVIRONMENT)
        started = time.perf_counter()
        state, metrics = train(run.folder)
        assert state is not None, "only processes that do not lead have no weights"
        save_weights(state, run.folder)
        write_json(metrics | {"last_session_seconds": time.perf_counter() - started}, run.folder / METRICS)
        (run.folder / CHECKPOINT).unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; a lock file with the holder's name where the file system has no locks.

    The system releases the lock of a killed process.
    """
    lock: FileLock | SoftFileLock = FileLock(path)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}ed"))  # not the same file, which would count as held
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def one_sentence_when_full(folder: Path) -> Iterator[None]:
    """Turn what a full disk raises within, an OSError or something of the library that wrote, into one OSError."""
    try:
        yield
    except Exception as error:
        full = ("No space left", "unexpected pos", "file write failed")  # the last two are PyTorch's
        if any(sign in str(error) for sign in full):
            what = f"the disk is full: {folder} could not be written; free some space and start again, which goes on"
            raise OSError(errno.ENOSPC, what) from error
        raise


def environment() -> dict[str, Any]:
    """The machine and the versions that a result was obtained with."""
    packages = ["tokencutseg", "torch", "torchvision", "pytorch-lightning", "lpips", "numpy", "scikit-image"]
    packages += ["segmentation-models-pytorch", "torchmetrics"]
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
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
