"""Where independent trainings run: in this process, in local processes, or on a Dask cluster, all through joblib.

Workers open the study themselves and share its results folder. A worker that dies loses the epoch that its training was
at and nothing else: another one resumes it.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import joblib
import torch

from tokencutseg.config import Config, ConfigError
from tokencutseg.data.source import open_source
from tokencutseg.experiments.pipeline import Training
from tokencutseg.experiments.runs import Run
from tokencutseg.experiments.study import Data, Study
from tokencutseg.models.hardware import Hardware

WAVES = (("vqgan",), ("masked_gpt",), ("segmentation", "baseline"))
"""The trainings of one wave are independent of each other once the waves before it are done."""
CONNECT_SECONDS, WORKER_SECONDS = 10, 60  # to wait for a scheduler to answer, and for its first worker
ATTEMPTS = 3  # how often trainings are given to workers that die
_ONE_AT_A_TIME = threading.Lock()  # a Dask worker may have several threads, which share PyTorch's random numbers


def train_missing(study: Study, trainings: Iterable[Training]) -> None:
    """Train and score what is missing of `trainings` and of what they build on, each once, wave after wave: on
    `study.jobs` local processes that share the cores, or on the cluster of the Dask scheduler at `study.dask`.

    Raises ConfigError where the cluster cannot be used, or workers die again and again.
    """
    wanted = _missing(study, trainings)
    for stages in WAVES:
        if wave := {id: training for id, training in wanted.items() if training.stage in stages}:
            _train_wave(study, wave)


def _missing(study: Study, trainings: Iterable[Training]) -> dict[str, Training]:
    """What is not done yet, by run id: trainings and those that they build on, each with all that is to be scored."""
    found: dict[str, Training] = {}
    for training in trainings:
        id = study.spec(training).id
        if not _done(study, id, training):
            found = _missing(study, study.parents(training).values()) | found
            pairs = (*(found[id].score_on if id in found else ()), *training.score_on)
            found[id] = dataclasses.replace(training, score_on=tuple(dict.fromkeys(pairs)))
    return found


def _done(study: Study, id: str, training: Training) -> bool:
    run = Run(study.store.folder / id)
    return run.done and all(run.scored(study.source.load(*pair)) for pair in training.score_on)


def _train_wave(study: Study, wave: dict[str, Training]) -> None:
    opened: Callable[[], Study] = lambda: study  # noqa: E731
    jobs = min(study.jobs, len(wave))
    if study.dask or jobs > 1:
        if study.data is None or study.adopted:
            what = "data source" if study.data is None else "tokenizer"
            raise ConfigError(f"the {what} of this study is known to this process only: it trains with one job")
        data = str(study.data) if isinstance(study.data, str | Path) else tuple(map(str, study.data))
        threads = None if study.dask else max(1, torch.get_num_threads() // jobs)
        held = study.source.study_name
        opened = functools.partial(_open, study.config, data, held, study.results.resolve(), study.hardware, threads)
    backend: dict[str, Any] = {"backend": "dask"} if study.dask else {}
    for _ in range(ATTEMPTS):
        left = [training for id, training in wave.items() if not _done(study, id, training)]
        try:
            with _client(study.dask) if study.dask else nullcontext(), joblib.parallel_config(**backend):
                parallel = joblib.Parallel(-1 if study.dask else jobs, batch_size=1, pre_dispatch="all")
                parallel(joblib.delayed(_train)(opened, training) for training in left)
            break
        except Exception as error:
            if type(error).__name__ not in ("TerminatedWorkerError", "KilledWorker"):
                raise
            died = error
    else:
        what = f"the processes that train were killed {ATTEMPTS} times, maybe for want of memory"
        raise ConfigError(f"{what}; start again with fewer jobs: what they have trained is kept") from died
    if lost := [id for id, training in wave.items() if not _done(study, id, training)]:
        what = f"a worker has trained {lost[0]} elsewhere or scored other images"
        raise ConfigError(f"{what}; all workers must share the data and {study.store.folder}")


def _train(opened: Callable[[], Study], training: Training) -> None:
    """Train and score one training, in this process or a worker."""
    with _ONE_AT_A_TIME:
        study = opened()
        run = study.run(training)
        for pair in training.score_on:
            study.records(run, *pair)


@functools.lru_cache(maxsize=1)  # the images stay in memory from one training to the next
def _open(
    config: Config, data: Data, held: str, results: Path, hardware: Hardware | None, threads: int | None
) -> Study:
    """The study in a worker; `held` is the source's `study_name`, with its digest of what the data hold."""
    if threads:
        torch.set_num_threads(threads)
    source = open_source(data if isinstance(data, str | Path) else list(data), config)
    if source.study_name != held:
        raise ConfigError(f"{data} holds other images for a worker than for this process; start again if they changed")
    return Study(config, source, results, hardware)


def _client(address: str) -> Any:
    """The scheduler at an address such as tcp://host:8786, when it has a worker."""
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("--dask needs Dask; install it with: pip install 'tokencutseg[cluster]'") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at {address}: {error}") from error
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except OSError as error:
        client.close()
        raise ConfigError(f"the Dask scheduler at {address} has had no worker for {WORKER_SECONDS} s") from error
    return client
