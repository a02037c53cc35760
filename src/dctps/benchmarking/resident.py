"""The process in which a network's memory is measured: its peak above what it was before.

Two training steps are taken, everything is dropped, and the same is done again: what torch keeps for good
(code that was loaded, oneDNN's kernels) is then in the level before. The shape tables and the native
kernel's scratch are not: they are dropped in between.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor

from dctps.benchmarking.networks import images_for, network_for, training_step
from dctps.kernels import release_scratch, scratch_bytes
from dctps.transforms import table_bytes
from dctps.transforms.tables import clear_tables


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def reset_peak() -> None:
    """Let the system count the peak from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """The largest number of resident bytes since then."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def _peak(model: str, offset: str, density: float, batch: int) -> dict[str, int]:
    images = images_for(batch)
    _two_steps(model, offset, density, images)
    gc.collect()
    clear_tables()
    release_scratch()
    before = resident()
    reset_peak()
    _two_steps(model, offset, density, images)
    return {"peak": peak_resident() - before, "scratch": scratch_bytes(), "tables": table_bytes()}


def _two_steps(model: str, offset: str, density: float, images: Tensor) -> None:
    step = training_step(network_for(model, offset, density), images)
    step()
    step()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    torch.manual_seed(0)
    print(json.dumps(_peak(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))))
