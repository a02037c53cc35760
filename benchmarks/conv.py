"""Time of one convolution, forward and backward, against `nn.Conv2d`.

python benchmarks/conv.py [--result benchmarks/results/conv.json] [--cells 3x3 1x1 high]

Candidates take turns in every round, each with an untimed call before the timed one. Gradients are those of
the input and of every parameter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from provenance import commit, processor
from torch import Tensor, nn

from dctps import DpSConv2d

# (batch, in, out, image, kernel, stride)
CELLS = {
    "3x3": [
        (32, 64, 64, 32, 3, 1),
        (32, 128, 128, 16, 3, 1),
        (64, 256, 256, 8, 3, 1),
        (128, 512, 512, 4, 3, 1),
    ],
    "1x1": [(32, 1024, 1024, 8, 1, 1)],
    "small": [(32, 3, 64, 32, 3, 1), (32, 6, 16, 14, 5, 1), (32, 64, 128, 16, 3, 1), (32, 512, 512, 2, 3, 1)],
}
DENSITIES = {"3x3": [0.001, 0.01], "1x1": [0.001, 0.01], "small": [0.001, 0.1, 0.5]}
OFFSETS = ("dct", "sdct")


def timed(layer: nn.Module, x: Tensor, g: Tensor) -> float:
    x.grad = None
    layer.zero_grad()
    begin = time.perf_counter()
    layer(x).backward(g)
    return time.perf_counter() - begin


def measure(
    cell: tuple[int, ...], densities: list[float], layout: torch.memory_format, rounds: int
) -> list[Any]:
    batch, channels, m, image, kernel, stride = cell
    shape = (channels, m, kernel, stride, kernel // 2)
    x = torch.randn(batch, channels, image, image).to(memory_format=layout).requires_grad_()
    layers: dict[tuple[str, float], nn.Module] = {
        ("nn.Conv2d", 1.0): nn.Conv2d(*shape, bias=False).to(memory_format=layout)
    }
    for density in densities:
        for offset in OFFSETS:
            layers[offset, density] = DpSConv2d(*shape, bias=False, offset=offset, density=density)
    g = torch.randn_like(layers["nn.Conv2d", 1.0](x).detach())
    times: dict[tuple[str, float], list[float]] = {key: [] for key in layers}
    call: Callable[[nn.Module], float] = lambda layer: timed(layer, x, g)  # noqa: E731
    for _ in range(rounds):
        for key, layer in layers.items():
            call(layer)
            times[key].append(call(layer))
    base = times["nn.Conv2d", 1.0]
    rows = []
    for (name, density), taken in times.items():
        rows.append(
            {
                "cell": cell,
                "layout": "channels last" if layout == torch.channels_last else "NCHW",
                "candidate": name,
                "density": density,
                "median_ms": 1e3 * statistics.median(taken),
                "p10_ms": 1e3 * sorted(taken)[len(taken) // 10],
                "ratio_to_dense": statistics.median(base) / statistics.median(taken),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/conv.json"))
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows = []
    for kind in arguments.cells:
        for cell in CELLS[kind]:
            for layout in (torch.channels_last, torch.contiguous_format):
                found = measure(cell, DENSITIES[kind], layout, arguments.rounds)
                shown = {
                    f"{r['candidate']} {r['density']:.1%}": round(r["ratio_to_dense"], 2) for r in found[1:]
                }
                print(cell, found[0]["layout"], f"{found[0]['median_ms']:.1f} ms", shown, flush=True)
                rows += found
    result = {
        "command": f"python {' '.join(sys.argv)}",
        "commit": commit(),
        "hardware": processor(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "cells": rows,
    }
    arguments.result.parent.mkdir(exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
