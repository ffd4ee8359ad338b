"""Widgets around figure functions: a notebook shows the static figure first, then lets a reader move its controls."""

import os
from collections.abc import Callable
from html import escape
from typing import Any

import ipywidgets
import pandas as pd
from IPython.display import HTML, Javascript, display
from matplotlib.figure import Figure

HEADLESS = "TOKENCUTSEG_HEADLESS"
"""Environment variable, set where a notebook is executed and nobody can move a control: a still is shown instead."""


def explore(figure: Callable[..., Figure], **controls: Any) -> None:
    """Show `figure(**values)` again whenever a control moves; in a headless execution once, with controls moved.

    `controls` are lists of values, or dictionaries of a slider's min, max, step and value.
    """
    if headless():
        values = {name: _moved(control) for name, control in controls.items()}
        settings = ", ".join(f"{name} = {value}" for name, value in values.items())
        display(HTML(f"<p><em>With a running kernel, a control redraws this picture; here {settings}.</em></p>"))
        display(figure(**values))
    else:
        keep_arrow_keys()
        sliders = {name: _slider(control) for name, control in controls.items()}
        ipywidgets.interact(lambda **values: figure(**values), **sliders)


def answer(*parts: str | pd.DataFrame) -> HTML:
    """The answer of an exercise, sentences and tables, folded until it is clicked: also after *Run All*."""
    shown = (part.to_html() if isinstance(part, pd.DataFrame) else f"<p>{escape(part)}</p>" for part in parts)
    return HTML(f"<details><summary>Answer</summary>{''.join(shown)}</details>")


def keep_arrow_keys() -> None:
    """Let a list or drop-down that has the focus keep the arrow keys, with which JupyterLab goes to the next cell."""
    keep = 'if (event.target.matches(".jupyter-widgets select")) event.target.dataset.lmSuppressShortcuts = "true";'
    display(Javascript(f'document.addEventListener("focusin", event => {{ {keep} }});'))


def headless() -> bool:
    """Whether the notebook is being executed without a reader."""
    return HEADLESS in os.environ


def _moved(control: Any) -> Any:
    """A value other than the one at which a control starts."""
    if isinstance(control, dict):
        return control["min" if control["value"] == control["max"] else "max"]
    return control[-1]


def _slider(control: Any) -> Any:
    """A slider that reports when it is let go, so that a drag does not queue a hundred pictures."""
    if not isinstance(control, dict):
        return control
    whole = all(isinstance(value, int) for value in control.values())
    return (ipywidgets.IntSlider if whole else ipywidgets.FloatSlider)(**control, continuous_update=False)
