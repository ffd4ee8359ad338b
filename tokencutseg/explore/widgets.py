"""Widgets around figure functions: a notebook shows the static figure first, then lets a reader move its controls."""

import os
from collections.abc import Callable, Iterator
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
        listen_to_arrow_keys()
        sliders = {name: _slider(control) for name, control in controls.items()}
        ipywidgets.interact(lambda **values: figure(**values), **sliders)


def answer(*parts: str | pd.DataFrame) -> HTML:
    """The answer of an exercise, sentences and tables, folded until it is clicked: also after *Run All*."""
    shown = (part.to_html() if isinstance(part, pd.DataFrame) else f"<p>{escape(part)}</p>" for part in parts)
    return HTML(f"<details><summary>Answer</summary>{''.join(shown)}</details>")


KEYS = """
if (!document.getElementById("token-boards")) {
  document.head.insertAdjacentHTML("beforeend", `<style id="token-boards">
    .token-board button { border: 1px solid transparent; padding: 0; min-width: 0; box-shadow: none !important; }
    .token-board:hover button, .token-board:focus-within button { border-color: rgb(255 255 255 / 20%); }
    .token-board button:is(:hover, :focus-visible) { outline: 2px solid black; border: 2px solid white; }
    .widget-tab > .widget-tab-bar .lm-TabBar-tab { flex: 0 1 auto !important; min-width: 0 !important; }
    .widget-tab > .widget-tab-bar .lm-TabBar-tab { color: var(--jp-ui-font-color1, black); }
    .jupyter-widgets { --jp-widgets-slider-handle-size: 24px; }
  </style>`);
  const named = () => document.querySelectorAll(".widget-slider .noUi-handle:not([aria-label])").forEach(handle => {
    const label = handle.closest(".widget-slider").querySelector("label")?.textContent;
    if (label) handle.setAttribute("aria-label", label);
  });
  new MutationObserver(named).observe(document.body, {childList: true, subtree: true});
  document.addEventListener("focusin", ({target}) => {
    if (target.matches(".jupyter-widgets select, .token-board button")) target.dataset.lmSuppressShortcuts = "true";
  });
  let choosing;
  document.addEventListener("keydown", event => {
    const board = event.target.closest(".token-board");
    if (!board || !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const cells = [...board.querySelectorAll("button")], at = cells.indexOf(event.target);
    const W = getComputedStyle(board).gridTemplateColumns.split(" ").length, x = at % W;
    const step = {ArrowLeft: -(x > 0), ArrowRight: +(x < W - 1), ArrowUp: -W, ArrowDown: W}[event.key];
    if (!cells[at + step]) return;
    cells[at + step].focus();
    clearTimeout(choosing);
    choosing = setTimeout(() => cells[at + step].click(), 50);
  });
}"""
"""A list, a drop-down and a board of tokens keep the arrow keys, with which JupyterLab goes to the next cell; they move
about the board, and where they rest a token is chosen. What is clicked is large enough, and sliders are named."""


def listen_to_arrow_keys() -> None:
    """Let lists, drop-downs and boards of tokens have the arrow keys."""
    display(Javascript(KEYS))


def parts(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    """A widget and all that it holds."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts(child)


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
