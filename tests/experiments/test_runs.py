"""The run store: what is done, resumed, locked and scored."""

import dataclasses
import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError

from tokencutseg import files
from tokencutseg.config import configure
from tokencutseg.data.image_set import ImageSet
from tokencutseg.experiments import runs
from tokencutseg.experiments.runs import RECORDS, Run, RunSpec, RunStore, commit

SPEC = RunSpec("vqgan", configure("tiny"), {"n": 1}, {"train": "abc"})
FORK = multiprocessing.get_context("fork")


def weights(folder):
    return {"w": torch.zeros(1)}, {"steps": 3}


def split(name, ids, **facts):
    pixels, n = torch.zeros(len(ids), 3, 8, 8, dtype=torch.uint8), len(ids)
    images = ImageSet("isic2017", name, ids, pixels, pixels[:, 0], None, [(8, 8)] * n)
    return dataclasses.replace(images, **facts)


def test_id(monkeypatch):
    changes = {"stage": "masked_gpt", "hashed_config": {"n": 2}, "dependencies": {"train": "abd"}, "name": "unet"}
    changes |= {"declaration": {"encoder": "resnet34"}}
    assert len({SPEC.id, *(dataclasses.replace(SPEC, **{name: new}).id for name, new in changes.items())}) == 6
    assert dataclasses.replace(SPEC, config=configure("quick")).id == SPEC.id
    before = SPEC.id
    monkeypatch.setattr(runs, "FORMAT", runs.FORMAT + 1)
    assert SPEC.id != before


def test_done_run_is_not_trained_again(tmp_path):
    def train(folder):
        (folder / "last.ckpt").write_text("while it trains")
        return weights(folder)

    store = RunStore(tmp_path)
    run = store.get_or_train(SPEC, train)
    assert store.get_or_train(SPEC, pytest.fail) == run == Run(tmp_path / SPEC.id)
    kept = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert kept == {"config.json", "environment.json", "metrics.json", "model.safetensors"}
    assert run.metrics["steps"] == 3 and run.metadata["config"] == SPEC.config.to_dict()
    assert run.metadata["hashed_config"] == {"n": 1} and run.metadata["dependencies"] == {"train": "abc"}
    assert json.loads((run.folder / "environment.json").read_text())["packages"]["torch"] in torch.__version__


def test_commit(tmp_path):
    def git(*command):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *author, *command], check=True, capture_output=True)

    asked = commit.__wrapped__  # each time
    assert asked(tmp_path) is None
    git("init")
    assert asked(tmp_path) is None, "no commit"
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    first = asked(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", first)
    (tmp_path / "untracked").write_text("results")
    assert asked(tmp_path) == first
    (tmp_path / "file").write_text("two")
    assert asked(tmp_path) == f"{first}+"
    (tmp_path / "inside").mkdir()
    assert asked(tmp_path / "inside") is None, "installed within another repository"


# ---- interruptions --------------------------------------------------------------------------------------------------


def killed(path):
    def train(folder):
        (folder / "last.ckpt").write_text("half way")
        os.kill(os.getpid(), signal.SIGKILL)

    RunStore(path).get_or_train(SPEC, train)


def test_killed_training_is_resumed(tmp_path):
    process = FORK.Process(target=killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and not Run(tmp_path / SPEC.id).done
    resume = lambda folder: ({}, {"found": (folder / "last.ckpt").read_text()})  # noqa: E731
    assert RunStore(tmp_path).get_or_train(SPEC, resume).metrics["found"] == "half way"


def ask(path, lock=None):
    def slow(folder):
        with (folder / "calls").open("a") as calls:
            calls.write("x")
        time.sleep(0.5)
        return weights(folder)

    files.FileLock = lock or files.FileLock  # in this process alone
    RunStore(path).get_or_train(SPEC, slow)


class NoLocks:
    """A lock on a file system without locks, as some network ones are."""

    def __init__(self, path):
        self.path = path

    def acquire(self, timeout):
        self.path.touch()
        raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("lock", [None, NoLocks], ids=["locks", "no locks"])
def test_two_processes_train_once(tmp_path, lock):
    with ProcessPoolExecutor(2, FORK) as pool:
        assert list(pool.map(ask, [tmp_path] * 2, [lock] * 2)) == [None, None]
    assert (tmp_path / SPEC.id / "calls").read_text() == "x"


@pytest.mark.parametrize("held", [True, False])
def test_lock_file_of_another_machine(tmp_path, monkeypatch, capsys, held):
    """It may be of a process that was killed there."""
    monkeypatch.setattr(files, "FileLock", NoLocks)
    monkeypatch.setattr(files, "WAIT_SECONDS", 0.01)
    if held:
        (tmp_path / ".locked").write_text("12345\nanother-machine\n")
    remover = threading.Timer(0.5, (tmp_path / ".locked").unlink, [True])
    remover.start()
    with files.locked(tmp_path / ".lock"):
        assert remover.finished.is_set() == held
    assert (f"waiting for {tmp_path}/.locked" in capsys.readouterr().out) == held
    remover.join()


def test_removed_folder(tmp_path):
    def train(folder):
        shutil.rmtree(folder)
        return weights(folder)

    with pytest.raises(FileNotFoundError, match="was removed while") as caught:
        RunStore(tmp_path).get_or_train(SPEC, train)
    assert caught.value.filename == str(tmp_path / SPEC.id)
    assert RunStore(tmp_path).get_or_train(SPEC, weights).done


def test_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("tokencutseg.models.checkpoint.save_file", full)
        with pytest.raises(OSError, match=r"the disk is full: .* free some space"):
            RunStore(tmp_path).get_or_train(SPEC, weights)
    assert not Run(tmp_path / SPEC.id).done
    assert RunStore(tmp_path).get_or_train(SPEC, weights).done


# ---- records --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    return RunStore(tmp_path).get_or_train(SPEC, weights)


def test_records_are_scored_once_per_split(run):
    calls, ids = [], ["0012", "0013"]

    def score():
        calls.append(1)
        return pd.DataFrame({"id": ids, "iou": [0.5, 1.0], "cluster": ["007", "12"]})

    assert not run.scored(split("test", ids))
    first, again = (run.records(split("test", ids), score) for _ in range(2))
    run.records(split("validation", ids), score)
    pd.testing.assert_frame_equal(first, again)
    assert len(calls) == 2 and again["id"].tolist() == ids == first["id"].tolist()
    assert len(pd.read_csv(run.folder / RECORDS)) == 4 and run.scored(split("test", ids))


def test_records_of_names_that_look_missing(run):
    ids = ["NA", "nan"]
    images = split("test", ids, dataset="None")
    rows = run.records(images, lambda: pd.DataFrame({"id": ids, "iou": [0.5, None], "cluster": ["null", None]}))
    assert rows["id"].tolist() == ids and rows["dataset"].tolist() == ["None"] * 2
    assert rows["iou"].isna().tolist() == rows["cluster"].isna().tolist() == [False, True]


def test_process_that_does_not_lead_waits_for_the_one_that_does(tmp_path):
    """It has trained along; the run is done when the other one has written it, before or after."""
    follower, trained = RunStore(tmp_path, leading=False), []
    leader = threading.Timer(0.5, RunStore(tmp_path).get_or_train, (SPEC, weights))
    leader.start()
    assert follower.get_or_train(SPEC, trained.append).done and len(trained) == 1
    leader.join()
    assert follower.get_or_train(SPEC, pytest.fail).done


def test_records_of_other_images(run):
    for name, ids in (("test", ["0012"]), ("validation", ["0014"]), ("test", ["0012", "0013"])):
        rows = run.records(split(name, ids), lambda ids=ids: pd.DataFrame({"id": ids, "iou": 0.5}))
        assert rows["id"].tolist() == ids
    table = pd.read_csv(run.folder / RECORDS, dtype={"id": str})
    assert table.groupby("split")["id"].agg(list).to_dict() == {"test": ["0012", "0013"], "validation": ["0014"]}


def test_a_kill_between_records_and_digest_costs_a_scoring_and_mixes_nothing(run, monkeypatch):
    before, other = split("test", ["0012"]), split("test", ["0013"])
    run.records(before, lambda: pd.DataFrame({"id": ["0012"], "iou": [0.1]}))
    write = runs.write_csv

    def killed(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "write_csv", killed)
        run.records(other, lambda: pd.DataFrame({"id": ["0013"], "iou": [0.2]}))
    rows = run.records(before, lambda: pd.DataFrame({"id": ["0012"], "iou": [0.3]}))
    assert rows["id"].tolist() == ["0012"] and rows["iou"].tolist() == [0.3]


FACTS = {"masks": torch.ones(1, 8, 8, dtype=torch.uint8), "native_sizes": [(9, 7)], "clusters": ["P1"]}


@pytest.mark.parametrize("fact", FACTS)
def test_records_of_changed_facts(run, fact):
    before, after = split("test", ["0012"]), split("test", ["0012"], **{fact: FACTS[fact]})
    for iou, images, expected in ((0.1, before, 0.1), (0.2, before, 0.1), (0.3, after, 0.3), (0.4, after, 0.3)):
        rows = run.records(images, lambda iou=iou: pd.DataFrame({"id": ["0012"], "iou": [iou]}))
        assert rows["iou"].tolist() == [expected]
