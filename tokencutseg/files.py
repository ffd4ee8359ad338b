"""Atomic writes (temporary file, then rename), locks, and paths in the checkout."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, SoftFileLock, Timeout

if TYPE_CHECKING:
    import pandas as pd  # which opening a model needs not wait for

_ROOT = Path(__file__).parents[1]
CHECKOUT = _ROOT if (_ROOT / "notebooks").is_dir() and (_ROOT / "pyproject.toml").is_file() else None
"""The root of the checkout, or None where the package is installed without it (from a wheel)."""
_TEXTS = dict.fromkeys(("id", "dataset", "split", "method", "cluster", "train", "test", "set_1", "set_2", "group"), str)
WAIT_SECONDS = 60
"""For a lock file, before saying so: no other machine can tell that its holder was killed."""


def resolve(path: str | Path) -> Path:
    """A relative path is one from the current folder, or what is not there but in the checkout; in the checkout's
    notebooks/, where Jupyter starts their kernels, it is always one in the checkout."""
    # of os.path, which takes links that go round in circles and names that are too long
    here, there = (os.path.realpath(folder / path) for folder in (Path(), CHECKOUT or Path()))
    in_notebooks = CHECKOUT is not None and Path.cwd().is_relative_to(CHECKOUT / "notebooks")
    elsewhere = os.path.exists(there) and not os.path.exists(here)  # noqa: PTH110
    return Path(there if in_notebooks or elsewhere else here)


def results_folder(path: str | Path = "") -> Path:
    """Where results are: in `path`, or in results/ of the checkout, or without one of the current folder."""
    return resolve(path) if path else (CHECKOUT or Path()).resolve() / "results"


_QUOTAS = {False: ("cpu.max",), True: ("cpu.cfs_quota_us", "cpu.cfs_period_us")}
"""Files of a control group of version 2, and of version 1: microseconds of processor time in a period, and that."""


def available_cores(root: str | Path = "/") -> int:
    """Cores that this process may use: its affinity, and what the control groups that it is in leave it (`docker run
    --cpus 2`), where the system at `root` tells; else all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = Path(root, "proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, path = line.split(":", 2)  # of version 2 of control groups: no controllers
        top = Path(root, "sys/fs/cgroup", controllers)
        folder = top / path.lstrip("/")
        for group in (folder, *folder.parents[: len(folder.parts) - len(top.parts)]):  # a container sees the top alone
            with suppress(OSError, ValueError):  # no such group here, no limit in it: "max"
                quota = " ".join((group / name).read_text() for name in _QUOTAS[bool(controllers)]).split()
                if int(quota[0]) > 0:
                    cores = min(cores, -(-int(quota[0]) // int(quota[1])))
    return cores


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path`, moved into its place when the block ends without an exception.

    Readers see the old or the new file, also after a kill or a full disk, and each process has a temporary file of its
    own. What a killed process left is removed by the next one that writes the same file, an hour later. Whatever a
    full disk or a removed folder makes a library raise becomes one clear OSError.
    """
    path = Path(path)
    own = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # the name itself may be as long as names can be
    for left in path.parent.glob(f".{own}.*.partial"):
        with suppress(FileNotFoundError):  # another process has just moved it into place
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
    temporary = path.with_name(f".{own}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    except Exception as error:
        if not path.parent.is_dir():
            what = "was removed while files were written to it; start again, which does them anew"
            raise FileNotFoundError(errno.ENOENT, what, str(path.parent)) from error
        if re.search("No space left|Disk quota|unexpected pos|file write failed", str(error)):  # the last two: PyTorch
            what = f"the disk is full: {path} was not written; free some space and start again, which goes on there"
            raise OSError(errno.ENOSPC, what) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def note(message: str) -> None:
    """Tell the user something that is no error."""
    print(f"note: {message}", file=sys.stderr, flush=True)


def write_json(value: Any, path: Path) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as file:
        file.write_text(json.dumps(value, indent=1) + "\n")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    with atomic_write(path) as file:
        table.to_csv(file, index=False)


def read_csv(source: Path | StringIO, **options: Any) -> pd.DataFrame:
    """A table as `write_csv` writes it. Names of sets, images and groups stay texts: a set may be called 2019 or NA."""
    import pandas as pd

    return pd.read_csv(source, dtype=_TEXTS, keep_default_na=False, na_values=[""], **options)


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock that other processes wait for and that a killed process releases; where the file system has none, a
    lock file, which a process killed on another machine does not release.

    Raises filelock.Timeout after `timeout` seconds, if that is not negative.
    """
    lock: FileLock | SoftFileLock = FileLock(path)
    try:
        lock.acquire(timeout)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}ed"))  # not the same file, which would count as held
        try:
            lock.acquire(WAIT_SECONDS if timeout < 0 else timeout)
        except Timeout:
            if timeout >= 0:
                raise
            print(f"waiting for {lock.lock_file}; remove it if no other process is at this", flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
