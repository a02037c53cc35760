"""The charts of a sweep's page: accuracy against density and numbers trained, by method, and by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dctps.analysis import chart
from dctps.analysis.accuracy import Axis, places_of
from dctps.analysis.chart import Mark
from dctps.analysis.curves import Panel, Point, curve_of
from dctps.analysis.runs import Run
from dctps.analysis.style import decades, in_order, style

X_NAMES: dict[Axis, str] = {"density": "density", "trained": "numbers trained"}

Lines = dict[float, dict[str, list[float]]]


def accuracy_charts(panel: Panel, quantity: str) -> list[str]:
    """Of a panel with some value: against density and numbers trained, or, of one density, by method."""
    if len(panel.densities) > 1:
        return [_against(panel, quantity, x) for x in X_NAMES]
    rows = {method: point for method, (point,) in panel.rows.items() if point.cell.mean is not None}
    if len(rows) < 2:
        return []
    marks = {
        method: Mark(100 * (point.cell.mean or 0), 0, _tip(point, method), 100 * (point.cell.std or 0))
        for method, point in sorted(rows.items(), key=lambda row: -(row[1].cell.mean or 0))
    }
    at = f", density {100 * panel.densities[0]:g}%" if panel.densities else ""
    return [
        chart.dots(
            marks, x_label=f"{quantity} (%){at}", description=f"{quantity}{at}, by method: {panel.title}"
        )
    ]


def _against(panel: Panel, quantity: str, x: Axis) -> str:
    place, flat = places_of(panel, x), dict(panel.flat)
    curves = {
        method: [_mark(point, method, place(point)) for point in reversed(curve) if _shown(point, x)]
        for method, curve in panel.curves.items()
    }
    if x == "trained" and "norms" in flat and _shown(flat["norms"], x):
        # A point of its own; the dense network's would be far away.
        point = flat.pop("norms")
        curves["norms"] = [_mark(point, "norms", place(point))]
    curves = {method: marks for method, marks in curves.items() if marks}
    levels = {m: _mark(point, m, 1.0) for m, point in flat.items() if point.cell.mean is not None}
    if x == "density":
        densities = {place(p): f"{100 * p.density:g}%" for curve in panel.curves.values() for p in curve}
        ticks = sorted(densities.items())
    else:
        numbers = [mark.x for marks in curves.values() for mark in marks]
        low, high = decades(min(numbers, default=1), max(numbers, default=1))
        powers = range(round(math.log10(low)), round(math.log10(high)) + 1)
        ticks = [(10.0**power, f"{10**power:,}") for power in powers]
    return chart.lines(
        curves, levels, x_label=X_NAMES[x], y_label=f"{quantity} (%)", ticks=ticks, log=True,
        description=f"{quantity} against {X_NAMES[x]}: {panel.title}",
    )  # fmt: skip


def _shown(point: Point, x: Axis) -> bool:
    return point.cell.mean is not None and (x == "density" or bool(point.numbers))


def _mark(point: Point, method: str, at: float) -> Mark:
    return Mark(at, 100 * (point.cell.mean or 0), _tip(point, method), 100 * (point.cell.std or 0))


def _tip(point: Point, method: str) -> str:
    density = "" if method in ("dense", "norms") else f" at {100 * point.density:g}%"
    numbers = "" if point.numbers is None else f", {point.numbers:,} numbers"
    n = "" if point.cell.n != point.cell.wanted else f" (n={point.cell.n})"
    return f"{point.cell}%{n}{density}{numbers}"


def learning_lines(runs: Sequence[Run]) -> Lines:
    """Mean accuracies over the seeds, in percent, by density (1 for methods without one) and curve.

    The runs differ in method, density and seed. An accuracy is that on validation, or on test where the run
    has none. A line ends with the first of its runs, finished or not.
    """
    found: dict[float, dict[str, list[list[float]]]] = {}
    for run in runs:
        held_out = run.config.validation_size > 0
        accuracies = (r["val_accuracy" if held_out else "test_accuracy"] for r in run.records)
        values = [100 * value for value in accuracies if value is not None]  # a share may be of no image
        density = 1.0 if run.config.density is None else run.config.density
        if values:
            found.setdefault(density, {}).setdefault(curve_of(run.config), []).append(values)
    return {
        density: {
            method: [math.fsum(v) / len(v) for v in zip(*seeds, strict=False)] for method, seeds in m.items()
        }
        for density, m in found.items()
    }


def learning_charts(lines: Lines, flat: Mapping[str, object], quantity: str, title: str) -> list[str]:
    """`learning_lines`, a chart for each density; methods without one, which `flat` names, are in each."""
    everywhere = {m: line for methods in lines.values() for m, line in methods.items() if m in flat}
    sparse = {
        density: {m: methods[m] for m in in_order(methods) if m not in flat}
        for density, methods in sorted(lines.items(), reverse=True)
    }
    panels = {f"density {100 * density:g}%": own for density, own in sparse.items() if own}
    panels = panels or ({", ".join(style(m).label for m in everywhere): {}} if everywhere else {})
    charts = []
    for name, methods in panels.items():
        marks = {
            method: [Mark(epoch, y, f"{y:.1f}% after epoch {epoch}") for epoch, y in enumerate(line, 1)]
            for method, line in (everywhere | methods).items()
        }
        last = max(len(line) for line in marks.values())
        every = max(1, round(last / 6))
        ticks = [(float(epoch), str(epoch)) for epoch in {1, last, *range(every, last, every)}]
        charts.append(
            chart.lines(
                marks, {}, x_label="epoch", y_label=f"{quantity} (%), {name}", ticks=ticks, log=False,
                description=f"{quantity} after each epoch, {name}: {title}",
            )
        )  # fmt: skip
    return charts
