"""What a projection costs: to draw, to hold, and at each step, beside the network's own step.

    python benchmarks/hyperplane.py

P theta_d and P^T g for LeNet-5, whose dense step at batch 128 is measured too, and Fastfood at the size of
ResNet50 (25.6 million parameters, 1% of them dimensions).
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dctps.benchmarking.record import commit, processor
from dctps.models import build_model
from dctps.subspace import build_projection

RESULT = Path(__file__).parent / "results" / "hyperplane.json"
LENET, RESNET50 = 62_006, 25_557_032
ROUNDS = 75


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def products(name: str, size: int, dimensions: int, rounds: int) -> dict[str, Any]:
    """One projection: seconds to draw, median milliseconds of the two products, bytes held."""
    projection = build_projection(name, size, dimensions)
    v = torch.randn(dimensions)
    g = torch.randn(size)
    first = seconds(lambda: projection(v))
    forward, backward = [], []
    for _ in range(rounds):
        forward.append(seconds(lambda: projection(v)))
        backward.append(seconds(lambda: projection.transpose(g)))
    return {
        "projection": name,
        "size": size,
        "dimensions": dimensions,
        "draw_seconds": first - min(forward),
        "forward_ms": 1e3 * statistics.median(forward),
        "backward_ms": 1e3 * statistics.median(backward),
        "held_bytes": projection.held_bytes(),
    }


def lenet_step() -> float:
    """Median milliseconds of a step of the dense network: forward, backward, Adam."""
    model = build_model("lenet5", 10, 3)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,))

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return 1e3 * statistics.median([seconds(step) for _ in range(ROUNDS)][5:])


def main() -> None:
    """Measure, and write the table."""
    names = ("dense", "sparse", "fastfood")
    result: dict[str, Any] = {
        "command": "python benchmarks/hyperplane.py",
        "commit": commit(),
        "hardware": f"{platform.machine()}, {processor()}, {torch.get_num_threads()} thread(s)",
        "torch": torch.__version__,
        "lenet_step_ms": lenet_step(),
        "cells": [products(name, LENET, d, ROUNDS) for d in (309, 1235) for name in names]
        + [products("fastfood", RESNET50, RESNET50 // 100, 3)],
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
