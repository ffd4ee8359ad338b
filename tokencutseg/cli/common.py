"""What the commands share: exit statuses, argument types, checks, a termination that lets them clean up."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokencutseg.config import ConfigError

OK, FAILED = 0, 1


class UsageError(ValueError):
    """A command line that parses but makes no sense; the message is one sentence."""


def positive(text: str) -> int:
    """An integer of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def natural(text: str) -> int:
    """An integer that can be a seed."""
    if not 0 <= (number := int(text)) < 2**32:
        raise argparse.ArgumentTypeError(f"must lie in 0 … 2^32 - 1, not {number}")
    return number


def read_overrides(pairs: Sequence[str]) -> dict[str, str]:
    """``stage.key=value`` pairs as a dict. Raises ConfigError for one without an equals sign."""
    overrides = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set takes stage.key=value, not {pair!r}")
        overrides[key.strip()] = value.strip()
    return overrides


def check_file(path: Path, option: str) -> None:
    """Make sure that `path` can be written, before anything that takes long. Raises UsageError and RunError."""
    from tokencutseg.report.notebooks import check_writable  # help must not wait for it

    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; give the name of a file")
    check_writable(path.absolute().parent, option)


@contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM acts as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
