"""Widgets around figure functions: a notebook shows the static figure first, then lets a reader move its controls."""

import os
from collections.abc import Callable
from typing import Any

import ipywidgets
from IPython.display import Javascript, display
from matplotlib.figure import Figure

HEADLESS = "TOKENCUTSEG_HEADLESS"
"""Environment variable, set where a notebook is executed and nobody can move a control: widgets then show nothing."""


def explore(figure: Callable[..., Figure], **controls: Any) -> None:
    """Show `figure(**values)` again whenever a control moves; does nothing in a headless execution.

    `controls` are what `ipywidgets.interactive` takes; a dictionary is a slider's min, max, step and value.
    """
    if not headless():
        keep_arrow_keys()
        sliders = {name: _slider(control) for name, control in controls.items()}
        ipywidgets.interact(lambda **values: figure(**values), **sliders)


def keep_arrow_keys() -> None:
    """Let a list or drop-down that has the focus keep the arrow keys, with which JupyterLab goes to the next cell."""
    keep = 'if (event.target.matches(".jupyter-widgets select")) event.target.dataset.lmSuppressShortcuts = "true";'
    display(Javascript(f'document.addEventListener("focusin", event => {{ {keep} }});'))


def headless() -> bool:
    """Whether the notebook is being executed without a reader."""
    return HEADLESS in os.environ


def _slider(control: Any) -> Any:
    """A slider that reports when it is let go, so that a drag does not queue a hundred pictures."""
    if not isinstance(control, dict):
        return control
    whole = all(isinstance(value, int) for value in control.values())
    return (ipywidgets.IntSlider if whole else ipywidgets.FloatSlider)(**control, continuous_update=False)
