"""Accuracy after each epoch: a small plot for each density, a line for each method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dctps.analysis.runs import Run
from dctps.analysis.style import STYLES, new_figure, style

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
    """Draw `learning_lines`; the dense network's line is in every plot.

    Args:
        lines: of at least one density.
        quantity: that is drawn, for the axis.
    """
    dense = {
        method: line for methods in lines.values() for method, line in methods.items() if method == "dense"
    }
    shown = {d: m for d, m in sorted(lines.items(), reverse=True) if set(m) - {"dense"}} or {1.0: dense}
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(1.2 + 3.4 * columns, 1.0 + 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    order = list(dict.fromkeys([*STYLES, *(method for methods in lines.values() for method in methods)]))
    handles = {}
    for axes in grid.flat:
        axes.set_visible(False)
    for axes, (density, methods) in zip(grid.flat, shown.items(), strict=False):
        axes.set_visible(True)
        for method, line in sorted((methods | dense).items(), key=lambda pair: order.index(pair[0])):
            look = style(method)
            (handles[look.label],) = axes.plot(
                range(1, len(line) + 1),
                line,
                **look.of_line(),
                markersize=4,
                markevery=max(1, len(line) // 6),
                linewidth=1.3,
            )
        axes.set_title("dense" if set(methods) == {"dense"} else f"density {100 * density:g}%", fontsize=9)
        axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("epoch", fontsize=9)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{quantity} (%)", fontsize=9)
    labels = sorted(handles, key=[style(method).label for method in order].index)
    figure.legend(
        [handles[label] for label in labels], labels, loc="outside lower center", ncols=min(4, 2 * columns),
        fontsize=8, handlelength=3.2,
    )  # fmt: skip
    return figure
