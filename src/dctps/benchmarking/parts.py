"""The parts of `dctps bench`, and the run of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dctps.benchmarking.layers import convolution_cells, linear_cells, network_layers, transform_cells
from dctps.benchmarking.memory import memory_cells
from dctps.benchmarking.networks import latency_cells, network_cells
from dctps.benchmarking.plan import Cell, Part, Plan
from dctps.benchmarking.record import add_run, provenance, read_runs
from dctps.experiments.settings import torch_settings

PARTS: dict[Part, Callable[[Plan], Iterator[Cell]]] = {
    "linear": linear_cells,
    "conv": convolution_cells,
    "layers": network_layers,
    "network": network_cells,
    "latency": latency_cells,
    "transform": transform_cells,
    "memory": memory_cells,
}


def run_bench(
    plan: Plan, *, json: Path | None = None, command: str = "", on_cell: Callable[[Cell], None]
) -> None:
    """Measure cell by cell, and put what there is of the run into a result file after each.

    Args:
        plan: what.
        json: the file; it keeps the runs of other commands.
        command: as the file names it.
        on_cell: called with each cell.

    Raises:
        ValueError: an unknown name, or a number that cannot be.
    """
    if plan.sizes is not None and not (plan.sizes and min(plan.sizes) > 0):
        raise ValueError(f"sizes must be above 0, got {plan.sizes}")
    if plan.densities is not None and not (plan.densities and min(plan.densities) >= 0):
        raise ValueError(f"densities must be 0 or more, got {plan.densities}")
    for name, number in {"batch": plan.batch, "nnz_per_row": plan.nnz_per_row}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if plan.device != "cpu" and plan.part in ("transform", "memory"):
        raise ValueError(f"bench {plan.part} is of the CPU: leave --device {plan.device} out")
    if json is not None and json.exists():
        read_runs(json)  # before the time is spent
    cells = []
    with torch_settings(plan.device, plan.threads, seed=0) as device, device:
        run = provenance(command, plan.threads) | {"part": plan.part}
        for cell in PARTS[plan.part](plan):
            on_cell(cell)
            cells.append(cell)
            if json is not None:
                add_run(json, run | {"cells": cells})
