"""Atomic writes (temporary file, then rename), and where the checkout is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd  # which opening a model needs not wait for

_ROOT = Path(__file__).parents[1]
CHECKOUT = _ROOT if (_ROOT / "notebooks").is_dir() and (_ROOT / "pyproject.toml").is_file() else None
"""The root of the checkout, or None where the package is installed without it (from a wheel)."""

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
    own. What a killed process left is removed by the next one that writes the same file, an hour later.
    """
    path = Path(path)
    for left in path.parent.glob(f".{path.name}.*.partial"):
        with suppress(FileNotFoundError):  # another process has just moved it into place
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(value: Any, path: Path) -> None:
    """Write JSON atomically."""
    with atomic_write(path) as file:
        file.write_text(json.dumps(value, indent=1) + "\n")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    with atomic_write(path) as file:
        table.to_csv(file, index=False)
