import errno
import json
import multiprocessing
import os
import subprocess
import sys

import pandas as pd
import pytest

from tokencutseg import files
from tokencutseg.files import atomic_write, available_cores, resolve, results_folder, write_csv, write_json


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    write_csv(pd.DataFrame({"a": [1]}), path)
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write_text("half of")
        assert not {*tmp_path.glob("*.csv")} - {path}, "nobody who looks for tables finds it"
        raise RuntimeError
    assert path.read_text() == "a\n1\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534"),  # torch.save
    ],
)
def test_full_disk(tmp_path, error):
    (tmp_path / "table.csv").write_text("old")
    with (
        pytest.raises(OSError, match=r"the disk is full: .*table.csv .* free some space") as caught,
        atomic_write(tmp_path / "table.csv") as file,
    ):
        file.write_text("half of")
        raise error
    assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]
    assert (tmp_path / "table.csv").read_text() == "old"


def test_what_a_killed_process_left_is_removed_an_hour_later(tmp_path):
    """Also where the name holds what has a meaning in patterns, and where it is as long as names can be."""
    for name in ("facts.json", "[1].json", "x" * 250 + ".json"):
        with atomic_write(tmp_path / name) as file:
            file.write_text("[")
        old, new = (file.with_name(file.name.replace(f".{os.getpid()}.", f".{n}.")) for n in "ab")
        for left in (old, new):
            left.write_text("[")
        os.utime(old, (0, 0))
        write_json([], tmp_path / name)
        assert not old.exists() and new.exists()


def test_two_processes_that_write_one_file_do_not_meet(tmp_path):
    path, context = tmp_path / "facts.json", multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, n)) for n in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert json.loads(path.read_text()) in (list(range(1000)), list(range(1, 1001)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["facts.json"]


def _write_often(path, n):
    for _ in range(200):
        write_json(list(range(n, n + 1000)), path)


@pytest.mark.parametrize(
    ("groups", "limits", "cores"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("1:name=systemd:/\n4:cpu,cpuacct:/docker/1", {"cpu,cpuacct/cpu.cfs_quota_us": "300000"}, 3),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_quota_us": "-1"}, 8),
        ("0::/gone", {}, 8),
    ],
)
def test_cores_that_control_groups_leave(tmp_path, monkeypatch, groups, limits, cores):
    """Of 8: in version 2 and 1, in a group or above it, seen from outside or within a container."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    everything = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{name}": text for name, text in limits.items()}
    for name in list(everything):
        if name.endswith("quota_us"):
            everything[name.replace("quota", "period")] = "100000"
    for name, text in everything.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinities")
def test_threads_are_as_many_as_the_process_may_use():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import tokencutseg, torch; print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP")}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "1 passive\n"


def test_paths_from_any_folder(tmp_path, monkeypatch):
    """What is there, then what the checkout has; the notebooks' own folder never counts."""
    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for folder in (checkout / "notebooks" / "results", checkout / "results", checkout / "data", elsewhere / "photos"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(files, "CHECKOUT", checkout)
    monkeypatch.chdir(checkout / "notebooks")
    assert (results_folder(), resolve("results"), resolve("new")) == (*[checkout / "results"] * 2, checkout / "new")
    monkeypatch.chdir(elsewhere)
    assert (resolve("photos"), resolve("new")) == (elsewhere / "photos", elsewhere / "new")
    assert (resolve("data"), results_folder()) == (checkout / "data", checkout / "results")
    (elsewhere / "results").mkdir()
    assert (results_folder(), results_folder("results")) == (checkout / "results", elsewhere / "results")
    monkeypatch.setattr(files, "CHECKOUT", None)
    assert (resolve("data"), results_folder()) == (elsewhere / "data", elsewhere / "results")
    assert resolve(checkout) == checkout
    (elsewhere / "round").symlink_to("round")
    for name in ("round", "x" * 300):
        assert resolve(name) == results_folder(name) == elsewhere / name
