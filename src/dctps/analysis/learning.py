"""Accuracy after each epoch: a small plot for each density, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dctps.analysis.accuracy import MANY, families_of
from dctps.analysis.runs import Run
from dctps.analysis.style import PAGE, dress, in_order, key, new_figure, style, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = dict[float, dict[str, list[float]]]


def learning_lines(runs: Sequence[Run]) -> Lines:
    """Mean accuracies over the seeds, in percent, by density (1 for dense networks) and method.

    An accuracy is that on validation, or on test where the run has none. A line ends with the first of its
    runs, finished or not.

    Args:
        runs: that differ in method, density and seed.
    """
    found: dict[float, dict[str, list[list[float]]]] = {}
    for run in runs:
        held_out = run.config.validation_size > 0
        found_out = (r["val_accuracy" if held_out else "test_accuracy"] for r in run.records)
        values = [100 * value for value in found_out if value is not None]  # a share may be of no image
        density = 1.0 if run.config.density is None else run.config.density
        if values:
            found.setdefault(density, {}).setdefault(run.config.method, []).append(values)
    return {
        density: {
            method: [math.fsum(v) / len(v) for v in zip(*those, strict=False)] for method, those in m.items()
        }
        for density, m in found.items()
    }


def draw_learning(lines: Lines, quantity: str) -> Figure:
    """Draw `learning_lines`; the dense network's line is in every plot, many methods are drawn by families.

    Args:
        lines: of at least one density.
        quantity: that is drawn, for the axis.
    """
    dense = {m: line for methods in lines.values() for m, line in methods.items() if m == "dense"}
    panels: dict[str, dict[str, list[float]]] = {}
    for density, methods in sorted(lines.items(), reverse=True):
        sparse = [method for method in methods if method != "dense"]
        families = families_of(sparse) if len(sparse) > MANY else {"": sparse} if sparse else {}
        for family, those in families.items():
            title = ", ".join(filter(None, [f"density {100 * density:g}%", family]))
            panels[title] = {method: methods[method] for method in in_order(those)} | dense
    panels = panels or {"dense": dense}
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(0.9 + 2.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (title, methods) in zip(grid.flat, panels.items(), strict=False):
        for method, line in methods.items():
            epochs, every = range(1, len(line) + 1), max(1, len(line) // 6)
            axes.plot(epochs, line, **style(method).of_line(), markersize=4, markevery=every, linewidth=1.2)
        beside = f"{quantity} (%)" if axes in grid[:, 0] else ""
        dress(axes, title=wrapped(title, PAGE / columns - 0.6), x="epoch", y=beside)
        axes.tick_params(labelbottom=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
    key(figure)
    return figure
