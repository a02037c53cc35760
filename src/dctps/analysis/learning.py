"""Accuracy after each epoch: a small plot for each density, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dctps.analysis import style as draw
from dctps.analysis.accuracy import MANY, families_of
from dctps.analysis.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = dict[float, dict[str, list[float]]]


def learning_lines(runs: Sequence[Run]) -> Lines:
    """Mean accuracies over the seeds, in percent, by density (1 for dense networks) and method.

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
            found.setdefault(density, {}).setdefault(run.config.method, []).append(values)
    return {
        density: {
            method: [math.fsum(v) / len(v) for v in zip(*seeds, strict=False)] for method, seeds in m.items()
        }
        for density, m in found.items()
    }


def draw_learning(lines: Lines, quantity: str) -> Figure:
    """Draw `learning_lines`: the dense network's line in every plot, many methods by families."""
    dense = {m: line for methods in lines.values() for m, line in methods.items() if m == "dense"}
    panels: dict[str, dict[str, list[float]]] = {}
    for density, methods in sorted(lines.items(), reverse=True):
        sparse = [method for method in methods if method != "dense"]
        families = families_of(sparse) if len(sparse) > MANY else {"": sparse} if sparse else {}
        for family, members in families.items():
            title = ", ".join(filter(None, [f"density {100 * density:g}%", family]))
            panels[title] = {method: methods[method] for method in draw.in_order(members)} | dense
    panels = panels or {"dense": dense}
    columns = min(2, len(panels))
    figure, grid = draw.new_grid(len(panels), columns, 2.2, beside=0.9, sharex=True, sharey=True)
    for axes, (title, methods) in zip(grid, panels.items(), strict=True):
        for method, line in methods.items():
            epochs, every = range(1, len(line) + 1), max(1, len(line) // 6)
            axes.plot(
                epochs, line, **draw.style(method).of_line(), markersize=4, markevery=every, linewidth=1.2
            )
        beside = f"{quantity} (%)" if draw.is_leftmost(axes) else ""
        draw.dress(axes, title=draw.wrapped(title, draw.PAGE / columns - 0.6), x="epoch", y=beside)
        axes.tick_params(labelbottom=True)
        axes.locator_params(axis="x", integer=True)
    draw.key(figure)
    return figure
