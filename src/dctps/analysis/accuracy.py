"""Pictures of accuracy against density or numbers trained (Figures 1 to 3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from dctps.analysis import style as draw
from dctps.analysis.aggregate import Cell
from dctps.analysis.curves import Panel, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Axis = Literal["density", "trained"]
Curves = Mapping[str, Sequence[Point]]

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
    families = {
        title: [m for method in family for m in draw.in_order(methods) if m.partition(" ")[0] == method]
        for title, family in FAMILIES.items()
    }
    families["no offset, changing supports"] += [m for m in methods if m.partition(" ")[0] not in named]
    return {title: family for title, family in families.items() if family}


def draw_families(panel: Panel, quantity: str, x: Axis = "density") -> Figure:
    """One panel of many methods as small ones, a family in each; `quantity` is the word at the axis."""
    place = places_of(panel, x)
    families = families_of(panel.curves)
    # Two labels such as `Random (EPL), fan-in` are wider than a plot.
    is_wide = max(len(draw.style(m).label) for family in families.values() for m in family) > 17
    height = 2.7 + 0.09 * is_wide * max(map(len, families.values()))
    figure, grid = draw.new_grid(len(families), 2, height, beside=0.6, sharey=True)
    for axes, (title, family) in zip(grid, families.items(), strict=True):
        for method, curve in panel.curves.items():
            there = [(place(p), 100 * p.cell.mean) for p in curve if p.cell.mean is not None]
            if method not in family and there:
                axes.plot(*zip(*there, strict=True), color=draw.GREY, linewidth=0.7, zorder=0.5)
        shown = [m for m in dict.fromkeys(["dctps", *family]) if m in panel.curves]
        _draw(axes, {method: panel.curves[method] for method in shown}, panel, x)
        notes = _notes({method: panel.curves[method] for method in family}, panel)
        _label(axes, panel, draw.PAGE / 2 - _LEFT, notes, quantity, x)
        draw.head(axes, title, *draw.named([axes]), columns=1 if is_wide else 2)
    behind = "; grey: other methods" if len(families) > 1 else ""
    draw.entitle(figure, f"{panel.title}, {panel.effort}\n{_counted([panel])}{behind}")
    return figure


def draw_panels(panels: Sequence[Panel], quantity: str, x: Axis = "density") -> Figure:
    """Each panel with all its curves; `quantity` is the word at the axis."""
    columns = min(2, len(panels))
    figure, grid = draw.new_grid(len(panels), columns, 2.7, beside=0.9, sharey=True)
    width = draw.PAGE / columns - _LEFT
    for axes, panel in zip(grid, panels, strict=True):
        _draw(axes, panel.curves, panel, x)
        _label(axes, panel, width, _notes(panel.curves, panel), quantity, x)
        axes.set_title(draw.wrapped(f"{panel.title}\n{panel.effort}", width), fontsize=draw.SMALL)
    draw.key(figure)
    figure.suptitle(_counted(panels), fontsize=draw.LARGE)
    return figure


def places_of(panel: Panel, x: Axis) -> Callable[[Point], float]:
    """Where a point stands on the logarithmic axis; density 0 as far below the lowest as two are apart."""
    if x == "trained":
        return lambda point: float(point.numbers or 0)
    above = [density for density in panel.densities if density]
    zero = min(above, default=1.0) / max(_spacing(above), 2.0)
    return lambda point: point.density or zero


def _draw(axes: Axes, curves: Curves, panel: Panel, x: Axis) -> None:
    """Means with bars of one standard deviation, those of one density side by side."""
    place = places_of(panel, x)
    step = 1.0
    if x == "density":
        step = min(3.0, _spacing({place(p) for curve in curves.values() for p in curve})) ** 0.05
    flat = dict(panel.flat)
    if x == "trained" and "norms" in flat:  # a point of its own; the dense network's would be far away
        curves = {**curves, "norms": [flat.pop("norms")]}
    for i, (method, curve) in enumerate(curves.items()):
        look = draw.style(method)
        there = [point for point in curve if not point.cell.missing]
        if not there:
            continue
        at = [place(p) * step ** (i - (len(curves) - 1) / 2) for p in there]
        means, stds = [100 * (p.cell.mean or 0) for p in there], [100 * (p.cell.std or 0) for p in there]
        bars = None if all(p.cell.std is None for p in there) else stds
        axes.errorbar(at, means, bars, **look.of_line(), capsize=2, markersize=5, linewidth=1.2)
        unreached = [p for p in curve if p.cell.missing and p.density < there[-1].density]
        if unreached and x == "density":  # what has no run has no numbers either
            edge = math.sqrt(place(there[-1]) * max(map(place, unreached)))
            axes.axvline(edge, color=look.color, linestyle=(0, (2, 2)), linewidth=1)
    for method, point in flat.items():
        look, mean, std = draw.style(method), point.cell.mean, point.cell.std
        if mean is None:
            continue
        axes.axhline(100 * mean, **look.of_line() | {"marker": ""}, linewidth=1.3, zorder=1)
        if std is not None:
            axes.axhspan(100 * (mean - std), 100 * (mean + std), color=look.color, alpha=0.12, linewidth=0)


def _notes(curves: Curves, panel: Panel) -> list[str]:
    """What the picture lacks, or shows of fewer runs than wanted, a line for each kind."""
    kinds: dict[str, list[str]] = {}
    rows = {**curves, **{method: [point] for method, point in panel.flat.items()}}
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


def _label(axes: Axes, panel: Panel, width: float, notes: Sequence[str], quantity: str, x: Axis) -> None:
    """Ticks at the densities, as many with words as there is room for in `width` inches; notes below."""
    if panel.empty:
        draw.dress(axes)
        axes.set_axis_off()
        draw.say(axes, "\n".join(["no value", *notes]), width)
        return
    quantity = quantity if draw.is_leftmost(axes) else ""
    place = places_of(panel, x)
    weights: dict[float, int | None] = {}  # by density
    for curve in panel.curves.values():
        for point in curve:
            weights[point.density] = weights.get(point.density) or point.weights
    counted = any(count is not None for count in weights.values())
    below = f"density{', and weights trained' if counted else ''}" if weights else ""
    if x == "trained":
        below = "numbers trained: weights, alphas, biases and norms"
    lines = [draw.wrapped(line, width) for line in (below, *notes) if line]
    draw.dress(axes, x="\n".join(lines), y=draw.wrapped(f"{quantity} (%)", 1.5) if quantity else "")
    axes.tick_params(labelleft=True)
    if not weights:
        axes.set_xticks([])
        return
    axes.set_xscale("log")
    axes.minorticks_off()
    if x == "trained":
        found = [p.numbers for m, row in panel.rows.items() for p in row if p.numbers and m != "dense"]
        axes.set_xlim(draw.decades(0.9 * min(found, default=1), 1.1 * max(found, default=1)))
        return
    places = {place(Point(density, None, Cell((), 0))): density for density in weights}
    margin = _spacing(places) ** 0.5
    axes.set_xlim(min(places) / margin, max(places) * margin)
    span = math.log(max(places) / min(places)) + 2 * math.log(margin)
    labels, free = [], -math.inf
    for at_axis, density in sorted(places.items()):
        count = weights[density]
        text = f"{100 * density:g}%" + ("" if count is None else f"\n{count:,}")
        at = width * math.log(at_axis) / span
        half = 0.5 * 0.6 * draw.SMALL / 72 * max(map(len, text.splitlines()))
        labels.append(text if at - half >= free else "")
        if labels[-1]:
            free = at + half + 0.04
    axes.set_xticks(sorted(places), labels)


def _counted(panels: Sequence[Panel]) -> str:
    counts = sorted({cell.wanted for panel in panels for cell in panel.cells})
    if counts == [1]:
        return "one seed (n = 1)"
    several = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"mean ± standard deviation over seeds, n = {several}"
