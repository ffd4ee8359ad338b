"""Widgets wrap figure functions: the notebook shows the static figure first, then lets a reader move its controls."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import ipywidgets
from IPython.display import Javascript, display
from matplotlib.figure import Figure


def explore(figure: Callable[..., Figure], **controls: Any) -> None:
    """Show `figure(**values)` again whenever a control moves; does nothing under the runner.

    `controls` are what `ipywidgets.interactive` takes: (low, high), (low, high, step), a list of choices, or a widget.
    """
    if headless():
        return

    def show(**values: Any) -> None:
        display(figure(**values))

    keep_arrow_keys()
    ipywidgets.interact(show, **{name: _lazy(control) for name, control in controls.items()})


def keep_arrow_keys() -> None:
    """Let a list or drop-down that has the focus keep the arrow keys, with which JupyterLab goes to the next cell."""
    display(
        Javascript("""document.addEventListener("focusin", event => {
        if (event.target.matches(".jupyter-widgets select")) event.target.dataset.lmSuppressShortcuts = "true";
    });""")
    )


def headless() -> bool:
    """True when the runner executes the notebook and nobody is there to move a slider."""
    return "TOKENCUTSEG_RECORD" in os.environ


def _lazy(control: Any) -> Any:
    """Sliders that report when they are let go, so that a drag does not queue a hundred pictures."""
    if isinstance(control, tuple) and all(isinstance(part, int | float) for part in control):
        kind = ipywidgets.IntSlider if all(isinstance(part, int) for part in control) else ipywidgets.FloatSlider
        bounds = dict(zip(("min", "max", "step"), control, strict=False))
        return kind(**bounds, value=control[0], continuous_update=False)
    return control
