"""Peak resident memory of a training step, above its activations.

Activations are what the dense network saves for backward, parameters and statistics apart, each tensor once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dctps.benchmarking.networks import images_for, network_for
from dctps.benchmarking.plan import BATCHES, Cell, Plan

# Every block above 16 kB is a mapping of its own, which is unmapped when it is freed.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def memory_cells(plan: Plan) -> Iterator[Cell]:
    """Bytes of a training step of each network; `share` is of dense parameters, gradients and Adam's state.

    Raises:
        ValueError: the system does not tell a process's memory as Linux does.
    """
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
    command = [sys.executable, "-m", "dctps.benchmarking.resident", *arguments]
    done = subprocess.run(
        command, env=os.environ | _ALLOCATOR, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise ValueError(f"the process that trains {model} under {offset} ended with {done.returncode}")
    found: dict[str, int] = json.loads(done.stdout)
    return found
