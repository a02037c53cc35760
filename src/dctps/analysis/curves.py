"""Accuracy against density, a curve for each method: Figures 1, 2 and 3."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dctps.analysis.aggregate import Cell, over_seeds, setting
from dctps.analysis.runs import Run
from dctps.analysis.style import GREY, STYLES, new_figure, style
from dctps.experiments.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
Place = tuple[str, str, int, int | None, int | None]

_LONGEST_REASON = 70  # letters, beside a panel

# Figure 1 has too many curves for one panel: each panel has a family, and all others in grey behind it.
FAMILIES: dict[str, tuple[str, ...]] = {
    "dense offset": ("dctps", "sdctps", "hyperplane"),
    "dense offset, moving supports": ("dctps-rigl", "sdctps-rigl"),
    "no offset, random supports": ("random-uniform", "random-epl", "random-epf", "random-erk"),
    "no offset, pruned at initialisation in rounds": ("iter-snip", "force", "synflow"),
    "no offset, pruned at initialisation at once": ("snip", "grasp", "magnitude"),
    "no offset, changing supports": ("rigl", "set", "dsr", "imp"),
}


@dataclass(frozen=True)
class Point:
    """A method at a density: how many weights train, and the cell of its runs."""

    density: float
    weights: int | None
    cell: Cell


@dataclass(frozen=True)
class Panel:
    """What runs of one network on one data set, trained for as long, found.

    Attributes:
        model: the network.
        dataset: the data set.
        epochs: of every run.
        images: that every run trains on in an epoch; None for all.
        pixels: side that images were resized to; None for their own.
        curves: by method, its points from the densest.
        dense: the cell of the dense network, if it is wanted.
    """

    model: str
    dataset: str
    epochs: int
    images: int | None
    pixels: int | None
    curves: dict[str, list[Point]]
    dense: Cell | None

    @property
    def title(self) -> str:
        """For a reader."""
        names = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tinyimagenet": "Tiny ImageNet"}
        return f"{MODELS.get(self.model, self.model)}, {names.get(self.dataset, self.dataset)}"

    def holds(self, config: RunConfig) -> bool:
        """Whether a run belongs here."""
        place = (self.model, self.dataset, self.epochs, self.images, self.pixels)
        return panel_of(config) == place

    @property
    def effort(self) -> str:
        """How long its runs train."""
        images = "" if self.images is None else f" of {self.images:,} images"
        pixels = "" if self.pixels is None else f", {self.pixels} x {self.pixels} pixels"
        return f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}{images}{pixels}"

    @property
    def seeds(self) -> int:
        """How many runs there should be of each setting, at most."""
        cells = [p.cell for curve in self.curves.values() for p in curve] + [self.dense or Cell((), 0)]
        return max(cell.wanted for cell in cells)


MODELS = {
    "lenet5": "LeNet-5", "resnet18": "ResNet18", "resnet50": "ResNet50", "vgg19": "VGG19",
    "mobilenetv2": "MobileNetV2", "fixup-resnet110": "FixupResNet110",
}  # fmt: skip


def panel_of(config: RunConfig) -> Place:
    """What runs of one panel have in common: the first attributes of `Panel`."""
    return config.model, config.dataset, config.epochs, config.train_images, config.image_size


def make_panels(
    runs: Sequence[Run],
    wanted: Sequence[RunConfig],
    notes: Mapping[RunConfig, str],
    value: Callable[[Run], float | None],
) -> list[Panel]:
    """Group runs by network, data set and effort, and average over their seeds.

    Args:
        runs: of any networks.
        wanted: what should be there.
        notes: why some of it is missing.
        value: an accuracy of a run, a fraction.
    """
    cells = over_seeds(runs, value, wanted, notes)
    weights = {setting(run.config): run.weights_trained for run in runs if run.summary is not None}
    panels: dict[Place, Panel] = {}
    dense: dict[Place, Cell] = {}
    for config, cell in cells.items():
        key = panel_of(config)
        panel = panels.setdefault(key, Panel(*key, {}, None))
        if config.density is None:
            dense[key] = cell
        else:
            point = Point(config.density, weights.get(config), cell)
            panel.curves.setdefault(config.method, []).append(point)
    return [replace(panel, curves=_in_order(panel.curves), dense=dense.get(k)) for k, panel in panels.items()]


def rows_of(panels: Sequence[Panel]) -> Rows:
    """The numbers behind a figure, a row for each method at each density."""
    rows = []
    for panel in panels:
        points = [(method, point) for method, curve in panel.curves.items() for point in curve]
        if panel.dense is not None:
            points.append(("dense", Point(1.0, None, panel.dense)))
        for method, point in points:
            cell = point.cell
            rows.append(
                {
                    "model": panel.model,
                    "dataset": panel.dataset,
                    "epochs": panel.epochs,
                    "train_images": panel.images,
                    "image_size": panel.pixels,
                    "method": method,
                    "density": None if method == "dense" else point.density,
                    "weights_trained": point.weights,
                    "mean": _rounded(cell.mean),
                    "std": _rounded(cell.std),
                    "n": cell.n,
                    "wanted": cell.wanted,
                    "values": " ".join(f"{v:.4f}" for v in cell.values),
                    "missing": "" if cell.n == cell.wanted else cell.note or "not run yet",
                }
            )
    return rows


def draw_families(panel: Panel, quantity: str) -> Figure:
    """One panel's curves as six small ones, a family in each.

    Args:
        panel: of many methods.
        quantity: that is drawn, for the axis.
    """
    figure = new_figure(11, 7.4)
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    named = {method for family in FAMILIES.values() for method in family}
    families = {title: list(family) for title, family in FAMILIES.items()}
    families["no offset, changing supports"] += [m for m in panel.curves if m not in named]
    for axes, (title, family) in zip(grid.flat, families.items(), strict=True):
        for method, curve in panel.curves.items():
            if method not in family:
                _draw_behind(axes, curve)
        shown = [m for m in dict.fromkeys(["dctps", *family]) if m in panel.curves]
        _draw(axes, {method: panel.curves[method] for method in shown}, panel.dense)
        axes.set_title(title, fontsize=10)
        axes.legend(*_legend([axes]), fontsize=8, loc="upper left", ncols=2, handlelength=3.2)
    _label(figure, grid[-1], grid[:, 0], panel, quantity, with_weights=True)
    low, high = grid[0, 0].get_ylim()
    grid[0, 0].set_ylim(low, high + 0.3 * (high - low))  # room for the legends above the dense network's line
    figure.suptitle(f"{panel.title}, {panel.effort}; {_counted([panel])}", fontsize=11)
    return figure


def draw_panels(panels: Sequence[Panel], quantity: str, *, with_weights: bool = False) -> Figure:
    """Each panel with all its curves.

    Args:
        panels: at least one.
        quantity: that is drawn, for the axis.
        with_weights: say under each density how many weights train.
    """
    columns = min(2, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = new_figure(5.6 * columns, 1.2 + 3.9 * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, panel.curves, panel.dense)
        reasons = "".join(f"\n{reason}" for reason in _reasons(panel))
        axes.set_title(f"{panel.title}, {panel.effort}{reasons}", fontsize=9 if reasons else 10)
        _label(figure, [axes], [axes], panel, quantity, with_weights=with_weights)
    figure.legend(
        *_legend(list(grid.flat)), loc="outside lower center", ncols=4, fontsize=8, handlelength=3.2
    )
    figure.suptitle(_counted(panels), fontsize=11)
    return figure


def _in_order(curves: Mapping[str, list[Point]]) -> dict[str, list[Point]]:
    """The methods as `STYLES` has them, the others last; of each the densest first."""
    methods = sorted(curves, key=lambda m: list(STYLES).index(m) if m in STYLES else len(STYLES))
    return {method: sorted(curves[method], key=lambda point: -point.density) for method in methods}


def _draw(axes: Axes, curves: Mapping[str, Sequence[Point]], dense: Cell | None) -> None:
    """Means with bars of one standard deviation; where a method has no value, its line is dashed."""
    for method, curve in curves.items():
        look = style(method)
        there = [point for point in curve if not point.cell.missing]
        label = look.label + _lacking(curve)
        if not there:
            axes.plot([], [], **look.of_line() | {"label": label})
            continue
        axes.errorbar(
            [p.density for p in there],
            [100 * (p.cell.mean or 0) for p in there],
            [100 * (p.cell.std or 0) for p in there],
            **look.of_line() | {"label": label},
            capsize=2,
            markersize=6,
            linewidth=1.5,
        )
        for point in there:
            if point.cell.n != point.cell.wanted:
                place = (point.density, 100 * (point.cell.mean or 0))
                axes.annotate(
                    f"n={point.cell.n}",
                    place,
                    (4, 4),
                    textcoords="offset points",
                    fontsize=6,
                    color=look.color,
                )
        unreached = [p.density for p in curve if p.cell.missing and p.density < there[-1].density]
        if unreached:
            edge = math.sqrt(there[-1].density * max(unreached))
            axes.axvline(edge, color=look.color, linestyle=(0, (2, 2)), linewidth=1)
    if dense is not None and dense.mean is not None:
        look = style("dense")
        axes.axhline(
            100 * dense.mean, color=look.color, linestyle=look.line, linewidth=1.3, label=look.label, zorder=1
        )
        if dense.std is not None:
            low, high = 100 * (dense.mean - dense.std), 100 * (dense.mean + dense.std)
            axes.axhspan(low, high, color=look.color, alpha=0.12, linewidth=0)


def _draw_behind(axes: Axes, curve: Sequence[Point]) -> None:
    there = [(p.density, 100 * p.cell.mean) for p in curve if p.cell.mean is not None]
    if there:
        axes.plot(*zip(*there, strict=True), color=GREY, linewidth=0.7, zorder=0.5)


def _legend(those: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Handles and labels of some axes, each label once, in the order of the methods."""
    found: dict[str, Any] = {}
    for axes in those:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    order = [look.label for look in STYLES.values()]
    labels = sorted(found, key=lambda label: order.index(label.split(" (no ")[0].removesuffix(" (missing)")))
    return [found[label] for label in labels], labels


def _lacking(curve: Sequence[Point]) -> str:
    missing = [point.density for point in curve if point.cell.missing]
    if not missing:
        return ""
    if len(missing) == len(curve):
        return " (missing)"
    return f" (no {', '.join(f'{100 * d:g}%' for d in missing)})"


def _reasons(panel: Panel) -> list[str]:
    """Why methods have no point at all, where it is known, each in a line."""
    lines = []
    for method, curve in panel.curves.items():
        notes = [point.cell.note for point in curve if point.cell.note]
        if notes and all(point.cell.missing for point in curve):
            reason = notes[0].split(": ", 1)[-1]  # without the class of the error
            short = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
            lines.append(f"no {style(method).label}: {short}")
    return lines


def _label(
    figure: Figure,
    below: Sequence[Axes],
    beside: Sequence[Axes],
    panel: Panel,
    quantity: str,
    *,
    with_weights: bool,
) -> None:
    ticks: dict[float, int | None] = {}
    for curve in panel.curves.values():
        for point in curve:
            ticks[point.density] = ticks.get(point.density) or point.weights
    for axes in below:
        axes.set_xscale("log")
        axes.minorticks_off()
        labels = [
            f"{100 * d:g}%" + (f"\n{w:,}" if with_weights and w is not None else "") for d, w in ticks.items()
        ]
        axes.set_xticks(list(ticks), labels, fontsize=8)
        axes.set_xlabel("density" + (", and weights trained" if with_weights else ""), fontsize=9)
    for axes in beside:
        axes.set_ylabel(f"{quantity} (%)", fontsize=9)
    for axes in figure.axes:
        axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)


def _counted(panels: Sequence[Panel]) -> str:
    seeds = sorted({panel.seeds for panel in panels})
    many = " or ".join(map(str, seeds))
    if seeds == [1]:
        return "one seed (n = 1)"
    return f"mean ± standard deviation over seeds, n = {many}"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
