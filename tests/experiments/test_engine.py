"""Which trainings run, in which order, and that workers that die cost nothing but an epoch."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from PIL import Image

from tokencutseg.config import ConfigError
from tokencutseg.experiments import engine
from tokencutseg.experiments.ablations import run_ablation
from tokencutseg.experiments.engine import train_missing
from tokencutseg.experiments.runs import CHECKPOINT, Run
from tokencutseg.experiments.study import Study

TEST, OTHER = ("site_a", "test"), ("site_b", "test")
SHORT = {"data.synthetic_train": 16, "data.synthetic_validation": 4, "data.synthetic_unlabelled": 8}
SHORT |= {"vqgan.perceptual": "none", "vqgan.epochs": 2, "masked_gpt.epochs": 2}
SHORT |= {"segmentation.epochs": 12}  # long enough to be killed in the middle
SHORT |= {"ablation.codebook_sizes": [4, 8], "ablation.images_per_epoch": 8}


def open_study(folder):
    return Study.open("tiny", results=folder, overrides=SHORT)


@pytest.fixture
def study(tmp_path):
    return open_study(tmp_path)


@pytest.fixture
def order(study, monkeypatch):
    """The stages that were trained, in order; nothing is."""
    found = []

    def run(training):
        found.append(training.baseline or training.stage)
        folder = study.store.folder / study.spec(training).id
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("{}")
        return Run(folder)

    monkeypatch.setattr(study, "run", run)
    return found


def test_waves(study, order):
    larger = study.config.override({"vqgan.codebook_size": 32})
    wanted = [study.method(name) for name in ("unet", "tokencutseg", "tokencutseg", "released")]
    wanted.insert(3, study.method("tokencutseg", config=larger))
    train_missing(study, wanted)
    assert order == ["vqgan"] * 3 + ["masked_gpt"] * 2 + ["unet"] + ["segmentation"] * 3
    train_missing(study, wanted)
    assert len(order) == 9, "they are done"


def test_scored_on_all_pairs(study, monkeypatch):
    scored = []
    monkeypatch.setattr(study, "records", lambda run, *pair: scored.append(pair))
    monkeypatch.setattr(engine, "_done", lambda *_: bool(scored))
    train_missing(study, [study.method("otsu", score_on=pairs) for pairs in ((TEST,), (OTHER, TEST))])
    assert scored == [TEST, OTHER]


def test_what_only_this_process_knows(study):
    study.jobs = 2
    for name, value in (("adopted", Run(study.folder)), ("data", None)):
        setattr(study, name, value)
        with pytest.raises(ConfigError, match="one job"):
            train_missing(study, [study.method("otsu"), study.method("unet")])


def test_missing_cluster(study, monkeypatch):
    study.dask = "tcp://127.0.0.1:9"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "distributed", None)
        with pytest.raises(ConfigError, match=r"pip install 'tokencutseg\[cluster\]'"):
            train_missing(study, [study.training("vqgan")])
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1)
    monkeypatch.setattr(engine, "WORKER_SECONDS", 1)
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        train_missing(study, [study.training("vqgan")])
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None, protocol="tcp://") as cluster:
        study.dask = cluster.scheduler_address
        with pytest.raises(ConfigError, match="has had no worker for 1 s"):
            train_missing(study, [study.training("vqgan")])


def test_workers_that_always_die(study, monkeypatch):
    def kill(*_, **__):
        raise TerminatedWorkerError

    monkeypatch.setattr(joblib, "Parallel", kill)
    with pytest.raises(ConfigError, match=r"were killed 3 times, .* fewer jobs"):
        train_missing(study, [study.method("otsu")])


def test_workers_open_changed_data_anew(tmp_path):
    """A worker that has the images of an earlier training in memory does not go on with them."""
    for kind, suffix in (("images", ""), ("masks", "_segmentation")):
        (tmp_path / kind).mkdir()
        for i in range(40):
            pixels = np.random.default_rng(i).integers(0, 256, (24, 32), np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{i}{suffix}.png")

    def in_worker(study):
        return engine._open(study.config, str(tmp_path), study.source.study_name, tmp_path, None, None)

    before = Study.open("tiny", data=tmp_path)
    assert in_worker(before) is in_worker(before)
    for kind, suffix in (("images", ""), ("masks", "_segmentation")):
        (tmp_path / kind / f"7{suffix}.png").unlink()
    now = Study.open("tiny", data=tmp_path)
    assert in_worker(now).source.study_name == now.source.study_name != before.source.study_name
    with pytest.raises(ConfigError, match="other images for a worker"):
        in_worker(before)


# ---- workers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of one process. All processes compute in one thread: the order of sums is then the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield run_ablation(open_study(tmp_path_factory.mktemp("alone")), "codebook_size")
        torch.set_num_threads(threads)


def kill_in_the_middle(results):
    """SIGKILL the child process that is training a segmenter, when an epoch is done; gives the segmenter's folder."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for folder in Path(results, "runs").glob("segmentation-*"):
            if (folder / CHECKPOINT).is_file() and not Run(folder).done:
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):  # one that has just ended
                        if any(str(folder) in file.path for file in child.open_files()):  # the lock of the run
                            child.kill()
                            return folder
        time.sleep(0.02)
    raise AssertionError("no worker trained a segmenter")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["local", "dask"])
def test_killed_worker(tmp_path, expected, where):
    """The table is that of one process."""
    study = open_study(tmp_path)
    with ExitStack() as stack:
        if where == "local":
            study.jobs = 2
        else:
            distributed = pytest.importorskip("distributed")  # a scheduler and workers on loopback
            cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
            study.dask = stack.enter_context(cluster).scheduler_address
        killer = stack.enter_context(ThreadPoolExecutor(1)).submit(kill_in_the_middle, tmp_path)
        table = run_ablation(study, "codebook_size")
        assert Run(killer.result()).done
    pd.testing.assert_frame_equal(table, expected)
