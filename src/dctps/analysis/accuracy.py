"""Pictures of accuracy against density (Figures 1, 2 and 3) and after each epoch, a line for each method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from dctps.analysis import style as draw
from dctps.analysis.aggregate import Cell
from dctps.analysis.curves import Panel, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
from typing import TYPE_CHECKING

from dctps.analysis.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figure 1 has too many curves for one panel: each panel has a family, and all others in grey behind it.
FAMILIES: dict[str, tuple[str, ...]] = {
    "dense offset": ("dctps", "sdctps", "hyperplane"),
    "dense offset, moving supports": ("dctps-rigl", "sdctps-rigl"),
    "no offset, random supports": ("random-uniform", "random-epl", "random-epf", "random-erk"),
    "no offset, pruned at initialisation in rounds": ("iter-snip", "force", "synflow"),
    "no offset, pruned at initialisation at once": ("snip", "grasp", "magnitude"),
    "no offset, changing supports": ("rigl", "set", "dsr", "imp"),
}
MANY = 8  # methods in one panel, beyond which families are drawn apart
_LEFT = 0.6  # inches beside a panel, for the labels of its axis


def families_of(methods: Collection[str]) -> dict[str, list[str]]:
    """The families that have any of the methods; what is in none of them is in the last."""
    named = {method for family in FAMILIES.values() for method in family}
    families = {title: [m for m in family if m in methods] for title, family in FAMILIES.items()}
    families["no offset, changing supports"] += [m for m in methods if m not in named]
    return {title: family for title, family in families.items() if family}


def draw_families(panel: Panel, quantity: str) -> Figure:
    """One panel of many methods as small ones, a family in each; `quantity` is the word at the axis."""
    families = families_of(panel.curves)
    figure, grid = draw.new_grid(len(families), 2, 2.7, beside=0.6, sharey=True)
    for axes, (title, family) in zip(grid, families.items(), strict=True):
        for method, curve in panel.curves.items():
            there = [(p.density, 100 * p.cell.mean) for p in curve if p.cell.mean is not None]
            if method not in family and there:
                axes.plot(*zip(*there, strict=True), color=draw.GREY, linewidth=0.7, zorder=0.5)
        shown = [m for m in dict.fromkeys(["dctps", *family]) if m in panel.curves]
        _draw(axes, {method: panel.curves[method] for method in shown}, panel.dense)
        notes = _notes({method: panel.curves[method] for method in family}, panel.dense)
        _label(axes, panel, draw.PAGE / 2 - _LEFT, notes, quantity)
        draw.head(axes, title, *draw.named([axes]), columns=2)
    behind = "; grey: other methods" if len(families) > 1 else ""
    draw.entitle(figure, f"{panel.title}, {panel.effort}\n{_counted([panel])}{behind}")
    return figure


def draw_panels(panels: Sequence[Panel], quantity: str) -> Figure:
    """Each panel with all its curves; `quantity` is the word at the axis."""
    columns = min(2, len(panels))
    figure, grid = draw.new_grid(len(panels), columns, 2.7, beside=0.9, sharey=True)
    width = draw.PAGE / columns - _LEFT
    for axes, panel in zip(grid, panels, strict=True):
        _draw(axes, panel.curves, panel.dense)
        _label(axes, panel, width, _notes(panel.curves, panel.dense), quantity)
        axes.set_title(draw.wrapped(f"{panel.title}\n{panel.effort}", width), fontsize=draw.SMALL)
    draw.key(figure)
    figure.suptitle(_counted(panels), fontsize=draw.LARGE)
    return figure


def _draw(axes: Axes, curves: Mapping[str, Sequence[Point]], dense: Cell | None) -> None:
    """Means with bars of one standard deviation, those of one density side by side."""
    step = min(3.0, _spacing({p.density for curve in curves.values() for p in curve})) ** 0.05
    for i, (method, curve) in enumerate(curves.items()):
        look = draw.style(method)
        there = [point for point in curve if not point.cell.missing]
        if not there:
            continue
        at = [p.density * step ** (i - (len(curves) - 1) / 2) for p in there]
        means, stds = [100 * (p.cell.mean or 0) for p in there], [100 * (p.cell.std or 0) for p in there]
        bars = None if all(p.cell.std is None for p in there) else stds
        axes.errorbar(at, means, bars, **look.of_line(), capsize=2, markersize=5, linewidth=1.2)
        unreached = [p.density for p in curve if p.cell.missing and p.density < there[-1].density]
        if unreached:
            edge = math.sqrt(there[-1].density * max(unreached))
            axes.axvline(edge, color=look.color, linestyle=(0, (2, 2)), linewidth=1)
    if dense is not None and dense.mean is not None:
        look = draw.style("dense")
        axes.axhline(100 * dense.mean, **look.of_line(), linewidth=1.3, zorder=1)
        if dense.std is not None:
            low, high = 100 * (dense.mean - dense.std), 100 * (dense.mean + dense.std)
            axes.axhspan(low, high, color=look.color, alpha=0.12, linewidth=0)


def _notes(curves: Mapping[str, Sequence[Point]], dense: Cell | None) -> list[str]:
    """What the picture lacks, or shows of fewer runs than wanted, a line for each kind."""
    kinds: dict[str, list[str]] = {}
    rows = {**curves, "dense": [] if dense is None else [Point(1.0, None, dense)]}
    for method, curve in rows.items():
        found: dict[str, list[str]] = {}
        for point in curve:
            cell = point.cell
            if cell.n != cell.wanted:
                none = "failed" if cell.note else "not run yet"
                kind = f"n = {cell.n} of {cell.wanted}" if cell.n else none
                found.setdefault(kind, []).append(f"{100 * point.density:g}%")
        for kind, densities in found.items():
            at = "" if len(densities) == len(curve) else f" at {', '.join(densities)}"
            kinds.setdefault(kind, []).append(draw.style(method).label + at)
    return [f"{kind}: {'; '.join(labels)}" for kind, labels in kinds.items()]


def _spacing(densities: Collection[float]) -> float:
    """Smallest ratio of neighbours; 10 where there are none."""
    found = sorted(densities)
    return min((b / a for a, b in itertools.pairwise(found)), default=10.0)


def _label(axes: Axes, panel: Panel, width: float, notes: Sequence[str], quantity: str) -> None:
    """Ticks at the densities, as many with words as there is room for in `width` inches; notes below."""
    if panel.empty:
        draw.dress(axes)
        axes.set_axis_off()
        draw.say(axes, "\n".join(["no value", *notes]), width)
        return
    quantity = quantity if draw.is_leftmost(axes) else ""
    weights: dict[float, int | None] = {}
    for curve in panel.curves.values():
        for point in curve:
            weights[point.density] = weights.get(point.density) or point.weights
    counted = any(count is not None for count in weights.values())
    below = f"density{', and weights trained' if counted else ''}" if weights else ""
    lines = [draw.wrapped(line, width) for line in (below, *notes) if line]
    draw.dress(axes, x="\n".join(lines), y=draw.wrapped(f"{quantity} (%)", 1.5) if quantity else "")
    axes.tick_params(labelleft=True)
    if not weights:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.minorticks_off()
    margin = _spacing(weights) ** 0.5
    axes.set_xlim(min(weights) / margin, max(weights) * margin)
    span = math.log(max(weights) / min(weights)) + 2 * math.log(margin)
    labels, free = [], -math.inf
    for density, count in sorted(weights.items()):
        text = f"{100 * density:g}%" + ("" if count is None else f"\n{count:,}")
        at = width * math.log(density) / span
        half = 0.5 * 0.6 * draw.SMALL / 72 * max(map(len, text.splitlines()))
        labels.append(text if at - half >= free else "")
        if labels[-1]:
            free = at + half + 0.04
    axes.set_xticks(sorted(weights), labels)


def _counted(panels: Sequence[Panel]) -> str:
    seeds = sorted({panel.seeds for panel in panels})
    if seeds == [1]:
        return "one seed (n = 1)"
    return f"mean ± standard deviation over seeds, n = {' or '.join(map(str, seeds))}"


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
