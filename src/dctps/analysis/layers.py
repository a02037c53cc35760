"""Figure 5: how many weights train in each layer, which layers are empty, and what that does to accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dctps.analysis import style as draw
from dctps.analysis.aggregate import setting
from dctps.analysis.curves import MODELS, Notes, models_of, panel_of
from dctps.analysis.runs import Run
from dctps.benchmarking.initial import read_examined
from dctps.experiments.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

_MANY = 80  # layers, beyond which a panel is as wide as the page
_MISSING = "#E0E0E0"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layers:
    """The layers of a run, from the input on, and the weights that train in each.

    `emptied` layers have neither such a weight nor an offset, so that no signal passes them.
    """

    run: Run
    names: list[str]
    nnz: list[int]
    emptied: int


def layers_of(run: Run) -> Layers | None:
    """From initial.json of the run's folder or, for a finished run, from its summary; None without either."""
    examined = read_examined(run.path)
    if examined is not None:
        rows = examined["layers"]
    elif run.summary is not None:
        rows = [row for row in run.summary["report"]["rows"] if row["offset"]]
    else:
        return None
    nnz = [int(row["nnz"]) for row in rows]
    emptied = sum(row["offset"] == "zero" and not row["nnz"] for row in rows)
    return Layers(run, [row["name"] for row in rows], nnz, emptied)


def figure5(runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, out: Path) -> list[Path]:
    """Draw weights per layer, of runs before training; accuracy against emptied layers, of finished runs."""
    by_config = {run.config: run for run in runs}
    sparse = [by_config[c] for c in wanted if c in by_config and c.density is not None]
    found = [layers for run in sparse if (layers := layers_of(run)) is not None]
    untrained = [layers for layers in found if layers.run.summary is None]
    trained = [layers for layers in found if layers.run.summary is not None]
    files = []
    if untrained:
        rows = _layer_rows(untrained)
        panels = {panel_of(layers.run.config) for layers in untrained}
        methods = {c.method for c in wanted if c.density is not None and panel_of(c) in panels}
        files += draw.save(out, "figure5", rows, draw_layers(rows, methods))
    if trained:
        rows = _accuracy_rows(trained)
        files += draw.save(out, "figure5-accuracy", rows, draw_accuracy(rows))
    return files


def draw_layers(rows: Sequence[Row], wanted: Collection[str] = ()) -> Figure:
    """A map for each density: a line for each method, in it a shade for each layer's number of weights.

    `rows` are those of figure5.csv; methods that are `wanted` have a line even if no row is of them.
    """
    from matplotlib import colors  # noqa: PLC0415 (an extra)

    densities = sorted({float(row["density"]) for row in rows}, reverse=True)
    methods = draw.in_order({row["method"] for row in rows} | set(wanted))
    layers = max(int(row["layer"]) for row in rows)
    columns = min(2, len(densities)) if layers <= _MANY else 1
    height = 0.6 + 0.17 * len(methods)
    figure, grid = draw.new_grid(len(densities), columns, height, beside=1.1, sharex=True, sharey=True)
    found = {(float(row["density"]), row["method"], int(row["layer"])): float(row["mean"]) for row in rows}
    trained = [mean for mean in found.values() if mean]
    norm = colors.LogNorm(*draw.decades(min(trained, default=1), max(trained, default=1)))
    for axes, density in zip(grid, densities, strict=True):
        numbers = [[found.get((density, m, i + 1), -1.0) for i in range(layers)] for m in methods]
        shades = _draw(axes, numbers, norm)
        emptied = {r["method"]: float(r["emptied_layers"]) for r in rows if float(r["density"]) == density}
        draw.dress(axes, title=f"density {100 * density:g}%", x="layer, from the input on")
        axes.grid(visible=False)
        axes.tick_params(labelbottom=True)
        axes.set_yticks(range(len(methods)), [draw.style(m).label for m in methods])
        for line, method in enumerate(methods):
            axes.axhline(line + 0.5, color=draw.BLACK, linewidth=0.4)
            count = emptied.get(method)
            text = "no run" if count is None else f"{round(count, 1):g}" if count else ""
            axes.text(layers + 1, line, text, va="center", fontsize=draw.SMALL, color=draw.BLACK)
        axes.set_title("empty", fontsize=draw.SMALL, loc="right")
    height = figure.get_figheight()
    bar = figure.colorbar(
        shades, ax=grid, location="bottom", fraction=0.15 / height, aspect=35, pad=0.1 / height
    )
    bar.set_label("weights that train in a layer (white: none)", fontsize=draw.SMALL)
    bar.ax.tick_params(labelsize=draw.SMALL)
    bar.ax.minorticks_off()
    seeds = " or ".join(map(str, sorted({int(row["n"]) for row in rows})))
    draw.entitle(
        figure,
        f"{models_of(rows)} at initialisation: weights that train in each layer, mean of n = {seeds}; "
        "empty: layers with neither such a weight nor an offset",
    )
    return figure


def draw_accuracy(rows: Sequence[Row]) -> Figure:
    """Test accuracy against emptied layers: a mark for each row of figure5-accuracy.csv, larger if denser."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    order = draw.in_order({row["method"] for row in rows})
    densities = sorted({float(row["density"]) for row in rows})
    sizes = {density: 4 + 5 * i / max(1, len(densities) - 1) for i, density in enumerate(densities)}
    columns = min(2, len(models))
    figure, grid = draw.new_grid(len(models), columns, 2.6, beside=1.3, sharey=True)
    for axes, model in zip(grid, models, strict=True):
        own = [row for method in order for row in rows if (row["model"], row["method"]) == (model, method)]
        for row in own:
            line = draw.style(row["method"]).of_line() | {"linestyle": "", "clip_on": False}
            at = float(row["emptied_layers"]), 100 * float(row["test_accuracy"])
            axes.plot(*at, **line, markersize=sizes[float(row["density"])])
        for classes in sorted({100 if row["dataset"] == "cifar100" else 10 for row in own}):
            axes.axhline(100 / classes, color=draw.BLACK, linestyle=":", linewidth=1, label="chance")
        below = "layers with neither a weight that trains nor an offset"
        beside = "test accuracy (%)" if draw.is_leftmost(axes) else ""
        draw.dress(
            axes, title=MODELS.get(model, model), x=draw.wrapped(below, draw.PAGE / columns - 0.6), y=beside
        )
        axes.locator_params(axis="x", integer=True)
    draw.key(figure)
    marks = ", ".join(f"{100 * density:g}%" for density in densities)
    draw.entitle(figure, f"a mark for each run; from small to large: density {marks}")
    return figure


def _draw(axes: Axes, numbers: Sequence[Sequence[float]], norm: LogNorm) -> Any:
    """The map; a number of -1 is one that is not known."""
    from matplotlib.colors import ListedColormap  # noqa: PLC0415 (an extra)

    unknown = [[0.0 if number < 0 else float("nan") for number in line] for line in numbers]
    known = [[number if number > 0 else float("nan") for number in line] for line in numbers]
    edges: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    extent = (0.5, len(numbers[0]) + 0.5, len(numbers) - 0.5, -0.5)
    axes.imshow(unknown, cmap=ListedColormap([_MISSING]), extent=extent, **edges)
    return axes.imshow(known, norm=norm, cmap="viridis", extent=extent, **edges)


def _layer_rows(found: Sequence[Layers]) -> list[dict[str, Any]]:
    groups: dict[RunConfig, list[Layers]] = {}
    for layers in found:
        groups.setdefault(setting(layers.run.config), []).append(layers)
    return [
        {
            "model": config.model,
            "method": config.method,
            "density": config.density,
            "layer": i + 1,
            "name": name,
            "mean": statistics.fmean(run.nnz[i] for run in seeds),
            "std": statistics.stdev(run.nnz[i] for run in seeds) if len(seeds) > 1 else None,
            "n": len(seeds),
            "emptied_layers": statistics.fmean(run.emptied for run in seeds),
        }
        for config, seeds in groups.items()
        for i, name in enumerate(seeds[0].names)
    ]


def _accuracy_rows(found: Sequence[Layers]) -> list[dict[str, Any]]:
    return [
        {
            **{
                name: getattr(layers.run.config, name)
                for name in ("model", "dataset", "method", "density", "seed")
            },
            "layers": len(layers.nnz),
            "emptied_layers": layers.emptied,
            "test_accuracy": layers.run.test_accuracy,
        }
        for layers in found
    ]
