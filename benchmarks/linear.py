"""A linear layer's forward and backward: DpSLinear by both its paths against nn.Linear.

    python benchmarks/linear.py --threads 1

Candidates are interleaved round by round, each with a warm call before the timed one. Also the source of the
constants in `dctps/nn/dispatch.py`.
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
from torch import nn

from dctps import DpSLinear
from dctps.nn import dps_linear
from dctps.nn.dispatch import choose_backend

SIZES = (256, 512, 1024, 2048, 4096)
DENSITIES = (0.001, 0.01, 0.05)
OFFSETS = ("dct", "sdct", "hadamard")
RESULT = Path(__file__).parent / "results" / "linear.json"


def candidates(n: int, batch: int, density: float) -> dict[str, Callable[[], None]]:
    """One forward and backward of each."""
    x = torch.randn(batch, n, requires_grad=True)
    g = torch.randn(batch, n)
    dense = nn.Linear(n, n, bias=False)

    def step(product: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            product(x).backward(g)

        return run

    found = {"nn.Linear": step(dense)}
    for offset in OFFSETS:
        layer = DpSLinear(n, n, bias=False, offset=offset, density=density)
        for backend in ("dense", "transform"):
            parts = layer.values, layer.support, layer.offset, layer.alpha

            def product(x: torch.Tensor, parts: Any = parts, backend: Any = backend) -> torch.Tensor:
                return dps_linear(x, *parts, backend=backend)

            found[f"{offset} {backend}"] = step(product)
    return found


def measure(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds, median and 10th percentile."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": statistics.median(t), "p10_ms": statistics.quantiles(t, n=10)[0]}
        for name, t in times.items()
    }


def main() -> None:
    """Measure every cell, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells = []
    for n in SIZES:
        for density in DENSITIES:
            found = measure(candidates(n, arguments.batch, density), arguments.rounds)
            base = found["nn.Linear"]["median_ms"]
            for name, cell in found.items():
                cells.append({"n": n, "density": density, "candidate": name, **cell})
                cells[-1]["ratio_to_dense"] = base / cell["median_ms"]
            chosen = {
                offset: choose_backend(
                    "auto",
                    DpSLinear(n, n, offset=offset, density=density).offset,
                    rows=arguments.batch,
                    nnz=round(density * n * n),
                )
                for offset in OFFSETS
            }
            shown = {name: round(base / cell["median_ms"], 2) for name, cell in found.items()}
            print(n, density, f"{base:.2f} ms", shown, chosen, flush=True)
    result = {
        "command": f"python {' '.join(sys.argv)}",
        "commit": commit(),
        "hardware": processor(),
        "threads": arguments.threads,
        "batch": arguments.batch,
        "torch": torch.__version__,
        "cells": cells,
    }
    arguments.result.parent.mkdir(exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
