"""The parts of `dctps bench`, and what each takes where nothing is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dctps.benchmarking.layers import CONVOLUTIONS, convolution_cells, linear_cells, network_layers
from dctps.benchmarking.memory import memory_cells
from dctps.benchmarking.networks import BATCHES, latency_cells, network_cells
from dctps.benchmarking.record import add_run, provenance, read_runs
from dctps.benchmarking.transform import transform_cells
from dctps.experiments.settings import torch_settings
from dctps.product.rule import Backend

Part = Literal["linear", "conv", "layers", "network", "latency", "transform", "memory"]
Cell = dict[str, Any]

_SIZES = (512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Plan:
    """What to measure; None is the part's own choice.

    Attributes:
        part: which.
        sizes: widths of linear layers, lengths of transforms, input channels of convolutions.
        densities: of the layers; networks have the first.
        nnz_per_row: of linear layers, in place of densities.
        offsets: to measure.
        backends: paths of linear layers and convolutions.
        models: by name.
        batch: rows or images.
        seconds: for each cell, unless five rounds take longer.
        threads: of the CPU.
    """

    part: Part
    sizes: tuple[int, ...] | None = None
    densities: tuple[float, ...] | None = None
    nnz_per_row: int | None = None
    offsets: tuple[str, ...] = ("dct", "sdct")
    backends: tuple[Backend, ...] = ("auto",)
    models: tuple[str, ...] = tuple(BATCHES)
    batch: int | None = None
    seconds: float = 1.0
    threads: int = 2


def run_bench(
    plan: Plan, *, json: Path | None = None, command: str = "", on_cell: Callable[[Cell], None]
) -> None:
    """Measure cell by cell, and put what there is of the run into a result file after each.

    Args:
        plan: what.
        json: the file; it keeps the runs of other commands.
        command: as the file names it.
        on_cell: is told each cell.

    Raises:
        ValueError: an unknown name, or a number that cannot be.
    """
    for name, numbers in {"sizes": plan.sizes, "densities": plan.densities}.items():
        if numbers is not None and not (numbers and min(numbers) > 0):
            raise ValueError(f"{name} must be above 0, got {numbers}")
    for name, number in {"batch": plan.batch, "nnz_per_row": plan.nnz_per_row}.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if json is not None and json.exists():
        read_runs(json)  # before the time is spent
    run = provenance(command, plan.threads) | {"part": plan.part}
    cells = []
    with torch_settings("cpu", plan.threads, seed=0):
        for cell in _cells(plan):
            on_cell(cell)
            cells.append(cell)
            if json is not None:
                add_run(json, run | {"cells": cells})


def _cells(plan: Plan) -> Iterator[Cell]:
    sizes, offsets, seconds = plan.sizes or _SIZES, plan.offsets, plan.seconds
    densities = plan.densities
    one = (densities or (0.001,))[0]
    match plan.part:
        case "linear":
            chosen = densities or (0.001, 0.01, 0.05)
            batch = plan.batch or 256
            yield from linear_cells(sizes, chosen, plan.nnz_per_row, batch, offsets, plan.backends, seconds)
        case "conv":
            channels = plan.sizes or tuple(inputs for _, inputs, *_ in CONVOLUTIONS)
            chosen = densities or (0.001, 0.01)
            yield from convolution_cells(channels, chosen, offsets, plan.backends, seconds)
        case "layers":
            chosen = densities or (0.0001, 0.001, 0.01, 0.1, 0.5)
            yield from network_layers(plan.models, plan.batch or 32, chosen, offsets, seconds)
        case "network":
            yield from network_cells(plan.models, plan.batch, one, offsets, seconds)
        case "latency":
            yield from latency_cells(plan.models, one, offsets, seconds)
        case "transform":
            yield from transform_cells(sizes, plan.batch or 256, seconds)
        case "memory":
            yield from memory_cells(plan.models, plan.batch, one, offsets)
