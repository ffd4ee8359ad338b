"""Where and how precisely networks compute: one choice for every command, and one line that says it."""

from __future__ import annotations

import functools
import os
import re
import warnings
from dataclasses import dataclass

import torch

from tokencutseg.config import ConfigError

DEVICES = ("auto", "cpu", "gpu", "mps")
VARIABLE = "TOKENCUTSEG_DEVICE"
"""What `--device` sets for the processes that a command starts, such as the kernels of notebooks."""


@dataclass(frozen=True)
class Hardware:
    """Where and how precisely a training computes; it is not part of a run's identity."""

    device: str = "auto"  # one of DEVICES
    precision: str = "auto"  # Lightning's name; auto is bf16-mixed on a GPU that has it and 32-true elsewhere
    devices: int = 1  # processes on each machine, one for each GPU (or, on CPUs, any number)
    num_nodes: int = 1  # machines
    progress_bar: bool = False  # print a line per epoch, and on a terminal show a bar within it

    @property
    def leading(self) -> bool:
        """Whether this process is the only one or the first, which writes and prints."""
        ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")  # set by launchers
        return self.devices * self.num_nodes == 1 or all(os.environ.get(name, "0") == "0" for name in ranks)

    def found(self) -> tuple[torch.device, str]:
        """The device of this process and Lightning's name of the precision. Raises as `choose_device` does."""
        device, precision = choose_device(self.device), self.precision
        if precision == "auto":
            has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16-mixed" if has_bf16 else "32-true"
        return device, "32-true" if precision == "16-mixed" and device.type != "cuda" else precision

    def describe(self, jobs: int = 1) -> str:
        """In words, for each of `jobs` processes that share the cores."""
        device, precision = self.found()
        threads = max(1, torch.get_num_threads() // jobs)
        name = f"CPU, threads: {threads}" if device.type == "cpu" else device.type.upper()
        if device.type == "cuda":
            name = f"GPU {torch.cuda.get_device_name()}" + (f", {self.devices} of them" if self.devices > 1 else "")
        elif self.device == "auto" and torch.cuda.is_available() and gpu_problem():
            name += f" (as {gpu_problem()})"
        return f"{name}, precision: {precision.replace('32-true', '32 bits').replace('-', ' ')}"


def choose_device(name: str = "auto") -> torch.device:
    """One of `DEVICES` on this machine: `auto` is what the variable TOKENCUTSEG_DEVICE says, else a GPU that can be
    used, else the CPU (and never Apple's MPS, which lacks operators). Raises ConfigError for one that cannot be used.
    """
    if name == "auto":
        name = os.environ.get(VARIABLE) or "auto"
    if name not in DEVICES:
        raise ConfigError(f"the device must be one of {', '.join(DEVICES)}, not {name!r}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("the device mps needs a Mac with Apple's GPU; choose cpu")
    if name == "gpu" and (problem := gpu_problem()):
        raise ConfigError(f"{problem}; choose the device cpu")
    if name == "auto":
        name = "cpu" if gpu_problem() else "gpu"
    return torch.device("cuda" if name == "gpu" else name)


@functools.cache
def gpu_problem() -> str:
    """Why no GPU can be used; empty where one can."""
    with warnings.catch_warnings():  # what PyTorch says, on several lines, of an old driver or an old GPU
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            return "there is no GPU here that PyTorch can use"
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
    oldest = min((int(re.sub(r"\D", "", arch)) for arch in torch.cuda.get_arch_list()), default=0)
    if torch.version.cuda and 10 * major + minor < oldest:
        needed = f"compute capability {oldest // 10}.{oldest % 10}, and it has {major}.{minor}"
        return f"the GPU {name} is too old for this PyTorch, which needs {needed}"
    return ""
