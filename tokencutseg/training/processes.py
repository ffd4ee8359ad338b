"""Several processes of one training: who writes, and how the others wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch.distributed as dist

_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
"""Environment variables by which launchers (Lightning's own, torchrun, SLURM) number processes; 0 is the first."""


def leads() -> bool:
    """Whether this process, of several that train together, is the one that writes and speaks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)


def wait_until(done: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Wait for what the leading process does. Raises TimeoutError, which says `what` did not happen."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {seconds:.0f} s for the leading process, but {what}")
        time.sleep(0.1)
