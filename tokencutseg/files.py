"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Where to write what is to be at `path`: a file beside it, moved into place when the block ends well.

    Nobody sees half of it, a kill meanwhile leaves what was there before, and two processes that write the same do not
    meet. The file keeps the ending of `path`, since writers go by it; a block that fails leaves nothing behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(value: Any, path: Path) -> None:
    """Write JSON so that nobody ever sees half of it."""
    with whole(path) as file:
        file.write_text(json.dumps(value, indent=1) + "\n")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table so that nobody ever sees half of it."""
    with whole(path) as file:
        table.to_csv(file, index=False)
