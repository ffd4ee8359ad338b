"""tokencutseg: a reproducibility study of TokenCutSeg, label-efficient skin-lesion segmentation."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokencutseg.files import available_cores

__version__ = version("tokencutseg")

# Before torch is imported, which reads it: threads that wait for each other soon leave the core to others. On two idle
# cores the packaged model takes 44 ms an image, with threads that sleep at once 72, that spin for long 32; with one
# core taken by others 75, 56 and 608.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's MPS lacks is computed on the CPU
if (_cores := available_cores()) < (os.cpu_count() or 1):  # OpenMP does not see the limits of a container
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores))


def load(path: str | Path | None = None, segments: bool = False) -> Any:
    """Open a saved model, by default the one that comes with the package; see `tokencutseg.models.checkpoint.load`."""
    from tokencutseg.models import checkpoint

    return checkpoint.load(checkpoint.PRETRAINED if path is None else path, segments)
