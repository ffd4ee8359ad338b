"""Times and memory of two callables that do the same, measured alternately, so that both meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tokencutseg.evaluation.cost import peak_memory, synchronize

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls, and the bytes that one call holds at its peak."""

    seconds: tuple[float, ...]
    peak_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def alternate(calls: list[Call], device: str, budget: float = 10.0, least: int = 3, most: int = 25) -> list[Timing]:
    """Time the calls in turn: `least` rounds, then on until `budget` seconds are spent or `most` rounds are done.

    One round before it warms up, one more (the memory's) is not timed.
    """
    for call in calls:
        call()
    seconds: list[list[float]] = [[] for _ in calls]
    started = time.perf_counter()
    while len(seconds[0]) < least or (len(seconds[0]) < most and time.perf_counter() - started < budget):
        for own, call in zip(seconds, calls, strict=True):
            synchronize()
            before = time.perf_counter()
            call()
            synchronize()
            own.append(time.perf_counter() - before)
    return [Timing(tuple(own), memory(call, device)) for own, call in zip(seconds, calls, strict=True)]


def memory(call: Call, device: str) -> int:
    """Bytes at the peak of a call: the allocator's own count on a GPU, live storages on a CPU."""
    if device == "cpu":
        return peak_memory(call)
    synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def matmul_rate(device: str, dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Operations per second of this machine's best of ten square matrix products: the measure of all shares."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        synchronize()
        before = time.perf_counter()
        a @ b
        synchronize()
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best
