"""tokencutseg: a reproducibility study of TokenCutSeg, label-efficient skin-lesion segmentation."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

__version__ = version("tokencutseg")


def load(path: str | Path | None = None) -> Any:
    """Open a saved model, by default the one that comes with the package; see `tokencutseg.models.checkpoint.load`."""
    from tokencutseg.models.checkpoint import PRETRAINED
    from tokencutseg.models.checkpoint import load as load_saved

    return load_saved(PRETRAINED if path is None else path)
