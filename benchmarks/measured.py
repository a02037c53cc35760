"""What `dctps bench` wrote to benchmarks/results/bench-*.json: cells by part, and their ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dctps.benchmarking.record import read_runs

Cell = dict[str, Any]

RESULTS = Path(__file__).parent / "results"
MACHINES = "bench-intel.json", "bench-amd.json"  # the newest first


def read_cells(path: Path) -> tuple[dict[str, list[Cell]], list[dict[str, Any]]]:
    """All cells by part, and the runs. `slope` and `density` are linear runs of their own."""
    runs = read_runs(path)
    cells: dict[str, list[Cell]] = {}
    for run in runs:
        part = run["part"]
        if "--nnz-per-row" in run["command"]:
            part = "slope"
        elif part == "linear" and "--backends" not in run["command"]:
            part = "density"
        run["section"] = part
        cells.setdefault(part, []).extend(run["cells"])
    return cells, runs


def median(cell: Cell, name: str) -> float:
    return float(cell["candidates"][name]["median_ms"])


def speed(cell: Cell, name: str, base: str = "") -> float:
    """How many times as fast as `base`, by default the first candidate, one is."""
    return median(cell, base or next(iter(cell["candidates"]))) / median(cell, name)


def layer_speeds(cells: list[Cell]) -> list[tuple[float, Cell, str]]:
    """Of every candidate beside the dense layer: its speed, its cell and its name."""
    others = ((cell, name) for cell in cells for name in cell["candidates"] if name != "dense")
    return [(speed(cell, name), cell, name) for cell, name in others]


def milliseconds(taken: float) -> str:
    return f"{taken:.3g}" if taken < 100 else f"{taken:,.0f}"


def shown(field: str, value: Any) -> str:
    return f"{100 * value:.3g}%" if field == "density" else str(value)
