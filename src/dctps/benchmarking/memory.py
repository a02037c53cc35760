"""Peak resident memory of a training step, above its activations, measured in a process of its own.

Activations are what the dense network saves for backward, parameters and statistics apart, each tensor once.
In the process two training steps are taken, everything is dropped, and the same is done again: what torch
keeps for good (code that was loaded, oneDNN's kernels) is then in the level before. The shape tables and the
native kernel's scratch are not: they are dropped in between.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dctps.benchmarking.networks import images_for, network_for, training_step
from dctps.benchmarking.plan import BATCHES, Cell, Plan
from dctps.kernels import release_scratch, scratch_bytes
from dctps.transforms import table_bytes
from dctps.transforms.tables import clear_tables

# Every block above 16 kB is a mapping of its own, which is unmapped when it is freed.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def memory_cells(plan: Plan) -> Iterator[Cell]:
    """Bytes of a training step; `share` is of a dense network's parameters, gradients and Adam's state."""
    if not Path("/proc/self/clear_refs").exists():
        raise ValueError("memory is read from /proc/self, which only Linux has")
    density = plan.density
    for model in plan.models:
        images = plan.batch or BATCHES.get(model, 32)
        activations = saved_bytes(network_for(model, "dense", density), images_for(images))
        state = 16 * sum(p.numel() for p in network_for(model, "dense", density).parameters())
        for offset in ("dense", *plan.offsets):
            peak = _in_a_process(model, offset, density, images)
            above = peak.pop("peak") - activations
            cell = {"model": model, "batch": images, "density": density, "offset": offset}
            yield cell | {
                "activations": activations,
                "dense_state": state,
                "peak_above_activations": above,
                "share": above / state,
                **peak,
            }


def saved_bytes(network: nn.Module, images: Tensor) -> int:
    """Bytes that a training step's forward pass saves for backward, parameters, buffers and images apart."""
    kept = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers(), images)}
    saved: dict[int, int] = {}
    alive = []

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in kept:
            saved[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = network(images).sum()
    del loss
    return sum(saved.values())


def _in_a_process(model: str, offset: str, density: float, batch: int) -> dict[str, int]:
    arguments = (model, offset, repr(density), str(batch), str(torch.get_num_threads()))
    program = "from dctps.benchmarking.memory import print_peak; print_peak()"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=os.environ | _ALLOCATOR, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise ValueError(f"the process that trains {model} under {offset} ended with {done.returncode}")
    found: dict[str, int] = json.loads(done.stdout)
    return found


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def release_freed() -> None:
    """Give memory that was freed back to the system: what takes its place is else in no peak.

    glibc does it when it is told to; with another C library nothing is done.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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


def print_peak() -> None:
    """Print the peak as JSON, of the network and the batch that the command line names."""
    model, offset, density, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    print(json.dumps(_peak(model, offset, float(density), int(batch))))
