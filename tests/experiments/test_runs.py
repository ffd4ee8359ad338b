import dataclasses
import json
import multiprocessing
import re
import subprocess
import time

import pandas as pd
import pytest
import torch
from filelock import FileLock

from tokencutseg.config import configure
from tokencutseg.data.image_set import ImageSet
from tokencutseg.evaluation.per_image import COLUMNS_VERSION
from tokencutseg.experiments.runs import Busy, NotTrained, RunSpec, RunStore, _commit


def spec(**changes):
    values = {"stage": "vqgan", "config": configure("tiny"), "covers": {"n": 1}, "inputs": {"train": "abc"}} | changes
    return RunSpec(**values)


def split(name, ids):
    n = len(ids)
    return ImageSet(
        "isic2017",
        name,
        ids,
        torch.zeros(n, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(n, 8, 8, dtype=torch.uint8),
        None,
        [(8, 8)] * n,
    )


def test_a_done_run_is_not_trained_again(tmp_path):
    calls = []

    def train(folder):
        calls.append(folder)
        return {"weight": torch.ones(2)}, {"steps": 3}

    store = RunStore(tmp_path)
    run = store.get_or_train(spec(), train)
    assert store.get_or_train(spec(), train).id == run.id and len(calls) == 1
    assert {p.name for p in run.folder.iterdir()} >= {
        "config.json",
        "environment.json",
        "metrics.json",
        "model.safetensors",
    }
    assert run.metrics["steps"] == 3 and run.config == configure("tiny")
    assert json.loads((run.folder / "environment.json").read_text())["packages"]["torch"] in torch.__version__


def test_the_environment_names_the_commit(tmp_path):
    def git(*command):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *command],
            check=True,
            capture_output=True,
        )

    assert _commit(tmp_path) is None
    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    commit = _commit(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    (tmp_path / "untracked").write_text("results")
    assert _commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert _commit(tmp_path) == f"{commit}+"
    (tmp_path / "inside").mkdir()
    assert _commit(tmp_path / "inside") is None, "installed within another repository"


def test_a_broken_run_is_not_done(tmp_path):
    def fail(folder):
        (folder / "last.ckpt").write_text("half way")
        raise RuntimeError("lost")

    store = RunStore(tmp_path)
    with pytest.raises(RuntimeError, match="lost"):
        store.get_or_train(spec(), fail)
    seen = []
    store.get_or_train(
        spec(), lambda folder: (seen.append((folder / "last.ckpt").read_text()), ({"w": torch.zeros(1)}, {}))[1]
    )
    assert seen == ["half way"]


def test_a_store_that_does_not_wait_leaves_a_training_to_who_is_at_it(tmp_path):
    store, folder = RunStore(tmp_path), tmp_path / spec().id
    store.waits = False
    folder.mkdir()
    with FileLock(folder / ".lock"), pytest.raises(Busy, match=spec().id):
        store.get_or_train(spec(), pytest.fail)
    assert store.get_or_train(spec(), lambda folder: ({"w": torch.zeros(1)}, {})).done


def test_a_store_that_does_not_train_says_what_is_missing(tmp_path):
    done = RunStore(tmp_path).get_or_train(spec(), lambda folder: ({"w": torch.zeros(1)}, {}))
    store, other = RunStore(tmp_path, training=False), spec(covers={"n": 2})
    assert store.get_or_train(spec(), pytest.fail) == done
    with pytest.raises(NotTrained, match=rf"needs the training {other.id} \(recipe revised\)$"):
        store.get_or_train(other, pytest.fail)
    assert not (tmp_path / other.id).exists()
    (tmp_path / other.id).mkdir()
    pd.DataFrame({"epoch": [1, 2]}).to_csv(tmp_path / other.id / "history.csv")
    with pytest.raises(NotTrained, match=r"of which 2 epochs are done$"):
        store.get_or_train(other, pytest.fail)


def test_whatever_decides_the_outcome_decides_the_name():
    ids = [
        s.id
        for s in (
            spec(),
            spec(covers={"n": 2}),
            spec(inputs={"train": "abd"}),
            spec(stage="masked_gpt"),
            spec(stage="baseline", name="unet"),
        )
    ]
    assert len(set(ids)) == len(ids)
    assert spec().id == spec(config=configure("quick")).id  # what is not covered does not matter
    assert ids[0].startswith("vqgan-") and ids[-1].startswith("unet-")


def slow(folder):
    with (folder / "calls").open("a") as calls:
        calls.write("x")
    time.sleep(1)
    return {"w": torch.zeros(1)}, {}


def ask(path):
    RunStore(path).get_or_train(spec(), slow)


def test_two_processes_that_want_the_same_run_train_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=ask, args=(tmp_path,)) for _ in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    assert [p.exitcode for p in processes] == [0, 0]
    assert (tmp_path / spec().id / "calls").read_text() == "x"


def test_records_are_scored_once_per_split(tmp_path):
    run = RunStore(tmp_path).get_or_train(spec(), lambda folder: ({"w": torch.zeros(1)}, {}))
    calls, ids = [], ["0012", "0013"]

    def score():
        calls.append(1)
        return pd.DataFrame({"id": ids, "iou": [0.5, 1.0], "cluster": ["007", "12"]})

    first, again = (run.records(split("test", ids), score) for _ in range(2))
    run.records(split("validation", ids), score)
    pd.testing.assert_frame_equal(first, again)
    assert len(calls) == 2 and again["id"].tolist() == ids == first["id"].tolist()
    assert len(pd.read_csv(run.folder / f"per_image-{COLUMNS_VERSION}.csv")) == 4


def test_records_of_other_images_are_scored_anew(tmp_path):
    """As when a split that was partial has been completed."""
    run = RunStore(tmp_path).get_or_train(spec(), lambda folder: ({"w": torch.zeros(1)}, {}))
    for name, ids in (("test", ["0012"]), ("validation", ["0014"]), ("test", ["0012", "0013"])):
        rows = run.records(split(name, ids), lambda ids=ids: pd.DataFrame({"id": ids, "iou": 0.5}))
        assert rows["id"].tolist() == ids
    table = pd.read_csv(run.folder / f"per_image-{COLUMNS_VERSION}.csv", dtype={"id": str})
    assert table.groupby("split")["id"].agg(list).to_dict() == {"test": ["0012", "0013"], "validation": ["0014"]}


@pytest.mark.parametrize(
    "change", [{"masks": torch.ones(1, 8, 8, dtype=torch.uint8)}, {"native_sizes": [(9, 7)]}, {"clusters": ["P1"]}]
)
def test_records_are_scored_anew_when_the_facts_have_changed(tmp_path, change):
    run = RunStore(tmp_path).get_or_train(spec(), lambda folder: ({"w": torch.zeros(1)}, {}))
    before, after = split("test", ["0012"]), dataclasses.replace(split("test", ["0012"]), **change)
    for iou, images, expected in ((0.1, before, 0.1), (0.2, before, 0.1), (0.3, after, 0.3), (0.4, after, 0.3)):
        rows = run.records(images, lambda iou=iou: pd.DataFrame({"id": ["0012"], "iou": [iou]}))
        assert rows["iou"].tolist() == [expected]
    (run.folder / "scored.json").unlink()
    assert run.records(before, pytest.fail)["iou"].tolist() == [0.3], "published records say nothing of them"
