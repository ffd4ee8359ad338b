"""Files that are there whole or not at all."""

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


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Where to write what is to be at `path`: a file beside it, moved into place when the block ends well.

    Nobody sees half of it, a kill meanwhile leaves what was there before, and two processes that write the same do not
    meet. A block that fails leaves nothing behind; what a killed process left is removed by one that writes the same an
    hour later.
    """
    path = Path(path)
    for left in path.parent.glob(f".{path.name}.*.partial"):
        with suppress(FileNotFoundError):  # it was not left, but moved into place meanwhile
            if time.time() - left.stat().st_mtime > 3600:
                left.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(value: Any, path: Path) -> None:
    """Write JSON so that nobody ever sees half of it."""
    with atomic_write(path) as file:
        file.write_text(json.dumps(value, indent=1) + "\n")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table so that nobody ever sees half of it."""
    with atomic_write(path) as file:
        table.to_csv(file, index=False)


def available_cores() -> int:
    """How many processor cores this process may use: those it is pinned to, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
