"""The file through which a notebook's kernel tells the runner how far it is: one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRESS_FILE = "TOKENCUTSEG_PROGRESS"
"""Environment variable naming the file; the runner sets it."""


def report_epoch(stage: str, run: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
    """Note that `run` of `stage` has finished `epoch` (counted from 1) of `epochs`.

    `metrics` are that epoch's scalars, numbers or one-element tensors. Does nothing outside the runner.
    """
    path = os.environ.get(PROGRESS_FILE)
    if path:
        values = {name: float(value) for name, value in metrics.items()}
        append_event(Path(path), {"stage": stage, "run": run, "epoch": epoch, "epochs": epochs, "metrics": values})


def append_event(path: Path, event: dict[str, Any]) -> None:
    """Add one line to a progress file. A single short write in append mode, so that two writers never mix lines."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(event).encode() + b"\n")
