"""Where a run is made: device, threads, torch's settings, and the record of what numbers may depend on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch

from dctps.experiments.config import ResolvedConfig
from dctps.kernels import variant
from dctps.product.machine import forced_machine, recorded, use_machine
from dctps.product.rule import environment_backend
from dctps.training import Processes, launched


@contextmanager
def torch_settings(device: str, threads: int | None, seed: int) -> Iterator[torch.device]:
    """Set threads, the global seed and the flushing of subnormals, and put them back; gives the device."""
    found = device_of(device)
    if threads is not None and not 1 <= threads <= 1024:
        raise ValueError(f"threads must be from 1 to 1024, got {threads}")
    before, profile = torch.get_num_threads(), forced_machine()
    flushed = float(torch.tensor([1e-310], dtype=torch.float64) + 0.0) == 0.0  # torch does not tell
    with torch.random.fork_rng(devices=[found] if found.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.set_num_threads(before if threads is None else threads)
        # A collapsed network decays into subnormal numbers, on which a CPU is ten times slower.
        torch.set_flush_denormal(True)
        try:
            yield found
        finally:
            torch.set_num_threads(before)
            torch.set_flush_denormal(flushed)
            use_machine(profile)  # a run that goes on follows the profile that it recorded


def device_of(name: str) -> torch.device:
    """The device of that name; `"auto"` is a GPU where there is one. A ValueError where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: choose cpu, cuda, cuda:0, ... or auto") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"the device {name!r} is not supported: choose cpu, cuda or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no device {name!r} ({torch.cuda.device_count()} GPUs found): choose --device cpu"
        )
    return device


def environment_of(device: torch.device, processes: Processes, config: ResolvedConfig) -> dict[str, Any]:
    """Where a process runs, as far as its numbers may depend on it."""
    native = device.type == "cpu" and config.offset is not None
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "kernels": variant() if native else "off",
        "backend": environment_backend(),
        "profile": recorded(device.type) if config.offset is not None else None,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("dctps", "torch", "numpy")},
        },
    }
