"""Layers in bfloat16 beside dense ones in bfloat16, which AMX multiplies where the processor has it.

python benchmarks/half.py [--seconds S]

Forward and backward on two threads, batch 256 of linear layers and 32 images of convolutions; candidates
take turns. Writes benchmarks/results/half.json, a table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import nn

from dctps import keep_freed_memory
from dctps.benchmarking.layers import layer_step
from dctps.benchmarking.networks import channels_last
from dctps.benchmarking.record import provenance
from dctps.benchmarking.timing import measure
from dctps.files import write_atomically
from dctps.nn import DpSConv2d, DpSLinear

RESULT = Path(__file__).parent / "results" / "half.json"
LINEAR = [(n, density) for n in (512, 1024, 2048, 4096) for density in (0.001, 0.01, 0.05)]
CONV = [(channels, side, 0.001) for channels, side in ((64, 32), (128, 16), (256, 8), (512, 4))]


def main() -> None:
    """Measure every cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.7)
    seconds = parser.parse_args().seconds
    keep_freed_memory()
    torch.set_num_threads(2)
    cells = []
    for n, density in LINEAR:
        layers = {offset: DpSLinear(n, n, offset=offset, density=density) for offset in ("dct", "sdct")}
        cell = {"what": f"linear {n} x {n}", "density": density}
        cells.append(cell | timed(nn.Linear(n, n), layers, torch.randn(256, n), torch.randn(256, n), seconds))
    for channels, side, density in CONV:
        shape = {"kernel_size": 3, "padding": 1, "bias": False}
        layers = {
            offset: DpSConv2d(channels, channels, density=density, offset=offset, **shape)
            for offset in ("dct", "sdct")
        }
        x, g = (channels_last_images(channels, side) for _ in range(2))
        cell = {"what": f"3 x 3, {channels} channels, {side} x {side}", "density": density}
        cells.append(
            cell | timed(channels_last(nn.Conv2d(channels, channels, **shape)), layers, x, g, seconds)
        )
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    result = {**provenance(f"python benchmarks/half.py --seconds {seconds:g}", 2), "amx": "amx_bf16" in flags}
    write_atomically(RESULT, (json.dumps(result | {"cells": cells}, indent=1) + "\n").encode())


def channels_last_images(channels: int, side: int) -> torch.Tensor:
    """32 of them."""
    return torch.randn(32, channels, side, side).to(memory_format=torch.channels_last)


def timed(
    dense: nn.Module, layers: dict[str, nn.Module], x: torch.Tensor, g: torch.Tensor, seconds: float
) -> dict[str, object]:
    """Steps of the dense layer and of the others in both dtypes."""
    steps = {}
    for dtype, name in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
        for which, layer in {"dense": dense, **layers}.items():
            own = copy.deepcopy(layer).to(dtype)
            steps[f"{which} {name}"] = layer_step(own, x.to(dtype).requires_grad_(), g.to(dtype))
    found = measure(steps, seconds)
    print({name: round(times["median_ms"], 3) for name, times in found.items()}, flush=True)
    return {"candidates": found}


if __name__ == "__main__":
    main()
