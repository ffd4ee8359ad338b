"""Which trainings run, in which order, and that workers that die cost nothing but an epoch."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tokencutseg.config import ConfigError
from tokencutseg.experiments import engine
from tokencutseg.experiments.ablations import run_ablation
from tokencutseg.experiments.engine import train_missing
from tokencutseg.experiments.runs import Run
from tokencutseg.experiments.study import Study

TEST, OTHER = ("site_a", "test"), ("site_b", "test")
SHORT = {
    "vqgan.perceptual": "none",
    "data.synthetic_train": 16,
    "data.synthetic_validation": 4,
    "data.synthetic_unlabelled": 8,
    "ablation.codebook_sizes": [4, 8],
    "ablation.images_per_epoch": 8,
    "segmentation.epochs": 40,  # long enough to be killed in the middle
    "masked_gpt.epochs": 2,
    "vqgan.epochs": 2,
}


def open_study(folder, **options):
    return Study.open("tiny", results=folder, overrides=SHORT, **options)


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


def test_trainings_run_in_waves_each_once(study, order):
    larger = study.config.override({"vqgan.codebook_size": 32})
    wanted = [
        study.method("unet"),
        study.method("tokencutseg"),
        study.method("tokencutseg"),
        study.method("tokencutseg", config=larger),
        study.method("released"),
    ]
    train_missing(study, wanted)
    assert order == ["vqgan"] * 3 + ["masked_gpt"] * 2 + ["unet"] + ["segmentation"] * 3
    train_missing(study, wanted)
    assert len(order) == 9, "they are done"


def test_what_builds_on_done_runs_needs_nothing_of_them(study, order):
    train_missing(study, [study.training("masked_gpt")])
    assert order == ["vqgan", "masked_gpt"]
    study.store.training = False
    train_missing(study, [study.training("segmentation")])
    assert order == ["vqgan", "masked_gpt"], "a study that does not train"
    study.store.training = True
    train_missing(study, [study.training("segmentation")])
    assert order[2:] == ["segmentation"]


def test_a_training_is_scored_on_all_that_is_asked_for(study, monkeypatch):
    scored = []
    monkeypatch.setattr(study, "records", lambda run, *pair: scored.append(pair))
    monkeypatch.setattr(engine, "_done", lambda *_: bool(scored))
    train_missing(study, [study.method("otsu", score_on=pairs) for pairs in ((TEST,), (OTHER, TEST))])
    assert scored == [TEST, OTHER]


def test_a_study_that_cannot_be_opened_anew_trains_in_one_process(study):
    study.data, study.jobs = None, 2
    with pytest.raises(ConfigError, match="one job"):
        train_missing(study, [study.training("vqgan")])


def test_a_cluster_that_is_not_there_is_one_sentence(study, monkeypatch):
    study.dask = "tcp://127.0.0.1:9"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "distributed", None)
        with pytest.raises(ConfigError, match=r"pip install 'tokencutseg\[cluster\]'"):
            train_missing(study, [study.training("vqgan")])
    pytest.importorskip("distributed")
    monkeypatch.setattr(engine, "CONNECT_SECONDS", 1)
    with pytest.raises(ConfigError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9"):
        train_missing(study, [study.training("vqgan")])


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


def kill_in_the_middle(results, processes):
    """SIGKILL the one of `processes` that is training a segmenter, when an epoch is done."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for folder in Path(results, "runs").glob("segmentation-*"):
            if (folder / "history.csv").is_file() and not Run(folder).done:
                for process in processes():
                    if any(str(folder) in str(link) for link in open_files(process)):
                        os.kill(process, signal.SIGKILL)
                        return folder
        time.sleep(0.02)
    raise AssertionError("no worker trained a segmenter")


def open_files(process):
    """The files that a process has open: the lock of its run is one."""
    try:
        return [link.readlink() for link in Path(f"/proc/{process}/fd").iterdir()]
    except OSError:
        return []


def descendants():
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(child) for child in children]


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the worker by its open files")


@pytest.mark.slow
@needs_proc
def test_local_workers_make_the_table_of_one_process_although_one_is_killed(tmp_path, expected):
    study, killed = open_study(tmp_path), []
    study.jobs = 2
    killer = threading.Thread(target=lambda: killed.append(kill_in_the_middle(tmp_path, descendants)))
    killer.start()
    table = run_ablation(study, "codebook_size")
    killer.join()
    assert Run(killed[0]).done
    pd.testing.assert_frame_equal(table, expected)


@pytest.mark.slow
@needs_proc
def test_a_cluster_makes_the_table_of_one_process_although_a_worker_is_killed(tmp_path, expected):
    pytest.importorskip("distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dask = [sys.executable, "-m", "distributed.cli"]
    port = address.rpartition(":")[2]
    commands = [
        ["dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--dashboard-address", ":0"]
    ]
    commands += [["dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]] * 2
    logs = (tmp_path / "dask.log").open("w")
    started = [
        subprocess.Popen(
            [*dask[:2], f"{dask[2]}.{name}", *rest], cwd=Path(__file__).parents[2], stdout=logs, stderr=logs
        )
        for name, *rest in commands
    ]
    study, killed = open_study(tmp_path / "results"), []
    study.dask = address
    workers = [process.pid for process in started[1:]]
    try:
        killer = threading.Thread(target=lambda: killed.append(kill_in_the_middle(study.results, lambda: workers)))
        killer.start()
        table = run_ablation(study, "codebook_size")
        killer.join()
    finally:
        for process in started:
            process.kill()
            process.wait()
        logs.close()
    assert Run(killed[0]).done
    assert sorted(process.returncode for process in started[1:])[0] == -signal.SIGKILL
    pd.testing.assert_frame_equal(table, expected)
