"""What the user sees while notebooks run: bars on a terminal, timestamped lines in a log."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

LINE_INTERVAL = 10.0
"""Least seconds between two lines about one notebook in a log."""
_BAR = "{desc} {bar} {n_fmt}/{total_fmt} {unit}s, {elapsed}{postfix}"


class ProgressFile:
    """Reads, bit by bit, the file that `tokencutseg.training.progress` writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new_events(self) -> list[dict[str, Any]]:
        """The events appended since the last call; a line still being written waits for the next one."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + 1 if whole else 0
        return [json.loads(line) for line in whole.splitlines()]


class Lines:
    """Progress for a log: plain lines with the time of day."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._last: dict[str, float] = {}

    def say(self, text: str) -> None:
        """One line, now."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self.stream, flush=True)

    def event(self, notebook: str, event: dict[str, Any]) -> None:
        """A cell or epoch, unless this notebook was spoken of a moment ago; the last epoch of a run always."""
        is_last = "epoch" in event and event["epoch"] == event["epochs"]
        if is_last or time.monotonic() - self._last.get(notebook, 0) >= LINE_INTERVAL:
            self._last[notebook] = time.monotonic()
            self.say(f"{notebook}: {_describe(event)}")

    def finished(self, notebook: str, text: str) -> None:
        """The notebook has ended, well or not."""
        self.say(text)

    def close(self) -> None:
        """Nothing to put away."""


class Bars:
    """Progress for a terminal: for each running notebook one bar of cells and, below it, one of epochs."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._bars: dict[tuple[str, str], tqdm] = {}

    def say(self, text: str) -> None:
        """One line above the bars."""
        tqdm.write(text, file=self.stream)

    def event(self, notebook: str, event: dict[str, Any]) -> None:
        """Move the bar that the event is about."""
        unit = "epoch" if "epoch" in event else "cell"
        title = f"  {event['stage']} {event['run']}" if unit == "epoch" else notebook
        bar = self._bars.get((notebook, unit))
        if bar is None:
            bar = tqdm(
                desc=title,
                total=event[f"{unit}s"],
                initial=event[unit],
                unit=unit,
                file=self.stream,
                leave=False,
                dynamic_ncols=True,
                bar_format=_BAR,
            )
            self._bars[notebook, unit] = bar
        bar.total, bar.n = event[f"{unit}s"], event[unit]
        bar.set_description_str(title, refresh=False)
        if unit == "epoch":
            bar.set_postfix_str(_metrics(event), refresh=False)
        bar.refresh()

    def finished(self, notebook: str, text: str) -> None:
        """Put the notebook's bars away and say how it ended."""
        for key in [key for key in self._bars if key[0] == notebook]:
            self._bars.pop(key).close()
        self.say(text)

    def close(self) -> None:
        """Put all bars away."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()


def progress_on(stream: TextIO) -> Bars | Lines:
    """Bars when `stream` is a terminal, lines otherwise."""
    return Bars(stream) if stream.isatty() else Lines(stream)


def _describe(event: dict[str, Any]) -> str:
    if "epoch" not in event:
        return f"cell {event['cell']} of {event['cells']}"
    return f"{event['stage']} {event['run']} epoch {event['epoch']} of {event['epochs']} {_metrics(event)}".rstrip()


def _metrics(event: dict[str, Any]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in event["metrics"].items())
