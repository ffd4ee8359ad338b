"""What a method costs: parameters, floating-point operations, time and memory of one prediction."""

from __future__ import annotations

import copy
import statistics
import time
import timeit
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def flops(module: nn.Module, *inputs: Tensor) -> int:
    """Floating-point operations of one forward pass in evaluation mode, by torch's own counter: two for a multiply-add,
    of matrix products, convolutions and attention only, as in most published numbers (which often give half of it)."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter finds no operations in torch's fused inference path
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            copy.deepcopy(module).eval()(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def latency(fn: Callable[[], Any], repeats: int = 10) -> float:
    """Median seconds of a call to `fn`, over `repeats` calls after two that warm it up; waits for the GPU, if any."""
    return statistics.median(timeit.repeat(fn, timer=clock, number=1, repeat=repeats + 2)[2:])


def peak_memory(fn: Callable[[], Any]) -> int:
    """Largest number of bytes that tensors made by `fn` hold at one moment of a call: activations, but neither weights
    and inputs, which were there before, nor a kernel's scratch space. So it hardly depends on the machine."""
    with _LiveStorage() as live:
        fn()
    return live.peak


@torch.no_grad()
def cost_row(name: str, module: nn.Module, image_size: int) -> dict[str, str | int | float]:
    """Cost of one forward pass on an image of side `image_size` (pixels), without flips, on the device of `module`:
    `method` (the name), `parameters`, `flops`, `latency_seconds`, `peak_memory_bytes`."""
    device = next((tensor.device for tensor in module.parameters()), torch.device("cpu"))
    image = torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    module = copy.deepcopy(module).eval()
    return {
        "method": name,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "flops": flops(module, image),
        "latency_seconds": latency(lambda: module(image)),
        "peak_memory_bytes": peak_memory(lambda: module(image)),
    }


class _LiveStorage(TorchDispatchMode):
    """Sums the bytes of the storages that operators make and that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._bytes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            # a result that shares its storage with an argument (a view, an in-place operation) is nothing new
            if storage._cdata not in given and storage._cdata not in self._bytes:
                self._bytes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._bytes.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._bytes.values()))
        return result


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def clock() -> float:
    """Seconds, read when the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
