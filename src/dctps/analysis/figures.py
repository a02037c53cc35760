"""The paper's figures by number: from run folders to pictures and the numbers behind them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dctps.analysis.accuracy import MANY, draw_families, draw_panels
from dctps.analysis.curves import Panel, make_panels, rows_of
from dctps.analysis.jacobians import figure4
from dctps.analysis.layers import figure5
from dctps.analysis.runs import Run
from dctps.analysis.style import save
from dctps.analysis.table1 import table1
from dctps.experiments.config import RunConfig

Notes = Mapping[RunConfig, str]
Draw = Callable[[Sequence[Run], Sequence[RunConfig], Notes, Path], list[Path]]


def figure1(runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, out: Path) -> list[Path]:
    """Largest validation accuracy of any epoch against the number of weights that train."""
    panels = make_panels(runs, wanted, notes, lambda run: run.max_val_accuracy)
    return _accuracy("figure1", panels, "maximum validation accuracy", out)


def figure2(runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, out: Path) -> list[Path]:
    """Test accuracy after the last epoch against density: ResNet50 and VGG19."""
    panels = make_panels(runs, wanted, notes, lambda run: run.test_accuracy)
    return _accuracy("figure2", panels, "test accuracy", out)


def figure3(runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, out: Path) -> list[Path]:
    """Test accuracy after the last epoch against density: MobileNetV2 and FixupResNet110."""
    panels = make_panels(runs, wanted, notes, lambda run: run.test_accuracy)
    return _accuracy("figure3", panels, "test accuracy", out)


FIGURES: dict[str, Draw] = {
    "1": figure1,
    "2": figure2,
    "3": figure3,
    "4": figure4,
    "5": figure5,
    "table1": table1,
}


def draw_figure(
    name: str, runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, out: Path
) -> list[Path]:
    """Draw a figure from its runs, and write it as PNG, PDF and CSV.

    Args:
        name: of `FIGURES`.
        runs: from `read_runs`; those that are not wanted are left out.
        wanted: resolved configurations that the figure is of; without a finished run they are shown missing.
        notes: why some are missing.
        out: folder for the files.

    Returns:
        The files.

    Raises:
        ValueError: matplotlib is not installed.
    """
    known = set(wanted)
    return FIGURES[name]([run for run in runs if run.config in known], wanted, notes, out)


def _accuracy(stem: str, panels: Sequence[Panel], quantity: str, out: Path) -> list[Path]:
    """Panels of many methods have a picture each, with a plot for each family; the others share one."""
    many = [panel for panel in panels if len(panel.curves) > MANY]
    files = []
    for panel in many:
        name = stem if len(many) == 1 else f"{stem}-{panel.model}-{panel.dataset}-{panel.epochs}-epochs"
        files += save(out, name, rows_of([panel]), draw_families(panel, quantity))
    few = [panel for panel in panels if panel not in many]
    if few:
        beside = [_only(panel, few) for panel in many] + few
        name = f"{stem}-longer" if many else stem
        files += save(out, name, rows_of(beside), draw_panels(beside, quantity))
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
