"""tokencutseg: a reproducibility study of TokenCutSeg, label-efficient skin-lesion segmentation."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

__version__ = version("tokencutseg")


def load(path: str | Path) -> Any:
    """Open a saved model; see `tokencutseg.model.saved.load`."""
    from tokencutseg.model.saved import load as load_saved

    return load_saved(path)
