"""The paper's figures by number: from run folders to pictures, their numbers, and how they came about."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dctps.analysis.accuracy import MANY, Axis, draw_families, draw_panels
from dctps.analysis.curves import QUANTITIES, Notes, Panel, make_panels, rows_of
from dctps.analysis.jacobians import figure4
from dctps.analysis.layers import figure5
from dctps.analysis.runs import Run, read_runs
from dctps.analysis.style import save
from dctps.analysis.table1 import table1
from dctps.benchmarking.initial import read_examined
from dctps.benchmarking.record import commit, processor
from dctps.experiments.config import RunConfig
from dctps.files import write_atomically
from dctps.sweeps.grid import Runs

_MACHINE = ("device", "threads", "cpu", "kernels", "versions")  # fields of summary.json
Draw = Callable[..., list[Path]]  # of runs, what is wanted, notes and the folder


def _accuracy(
    stem: str,
    quantity: str,
    runs: Sequence[Run],
    wanted: Sequence[RunConfig],
    notes: Notes,
    out: Path,
    x: Axis = "density",
) -> list[Path]:
    """Panels of many methods have a picture each, with a plot for each family; the others share one."""
    stem += "" if x == "density" else f"-{x}"
    panels = make_panels(runs, wanted, notes, QUANTITIES[quantity])
    many = [panel for panel in panels if len(panel.curves) > MANY]
    files = []
    for panel in many:
        name = stem if len(many) == 1 else f"{stem}-{panel.model}-{panel.dataset}-{panel.epochs}-epochs"
        files += save(out, name, rows_of([panel]), draw_families(panel, quantity, x))
    few = [panel for panel in panels if panel not in many]
    if few:
        beside = [_only(panel, few) for panel in many] + few
        name = f"{stem}-longer" if many else stem
        files += save(out, name, rows_of(beside), draw_panels(beside, quantity, x))
    return files


def _only(panel: Panel, others: Sequence[Panel]) -> Panel:
    """The panel with the methods and the densities alone that the others have."""
    methods = {method for other in others for method in other.curves}
    densities = {p.density for other in others for curve in other.curves.values() for p in curve}
    curves = {
        method: [point for point in curve if point.density in densities]
        for method, curve in panel.curves.items()
        if method in methods
    }
    return replace(panel, curves=curves)


FIGURES: dict[str, Draw] = {
    "1": partial(_accuracy, "figure1", "maximum validation accuracy"),
    "2": partial(_accuracy, "figure2", "test accuracy"),
    "3": partial(_accuracy, "figure3", "test accuracy"),
    "4": figure4,
    "5": figure5,
    "table1": table1,
}


def draw_figure(
    name: str, runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, out: Path, x: Axis = "density"
) -> list[Path]:
    """Draw a figure of `FIGURES`, and write it as PNG, PDF and CSV into `out`; returns the files.

    The figure is of the resolved configurations that are `wanted`. Those without a finished run are shown as
    missing, for which `notes` has reasons; `runs` of others are left out. `x` is the axis of figures 1 to 3.
    """
    known, options = set(wanted), {"x": x} if name in ("1", "2", "3") else {}
    return FIGURES[name]([run for run in runs if run.config in known], wanted, notes, out, **options)


def write_origin(name: str, out: Path, command: str, runs: Runs) -> Path:
    """Write how figure `name` came about into figureNAME.json, or table1.json, in its folder `out`; its path.

    It holds the command, the commit and the machine that drew, and where the runs in out/runs were trained.
    """
    wanted = set(runs.values())
    readable = read_runs(out / "runs", on_damage=lambda name, reason: None)  # who draws has said so
    found = [run for run in readable if run.config in wanted]
    machines = [{key: r.summary.get(key) for key in _MACHINE} for r in found if r.summary is not None]
    record = {
        "command": command,
        "commit": commit(),
        "hardware": processor(),
        "runs": len(wanted),
        "finished": len(machines),
        "examined": sum(read_examined(run.path) is not None for run in found),
        "trained_on": [machine for i, machine in enumerate(machines) if machine not in machines[:i]],
    }
    path = out / (f"{name}.json" if name.startswith("table") else f"figure{name}.json")
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
    return path
