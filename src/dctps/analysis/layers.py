"""Figure 5: how many weights train in each layer, which layers are empty, and what that does to accuracy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dctps.analysis.aggregate import setting
from dctps.analysis.curves import MODELS
from dctps.analysis.jacobians import ROWS
from dctps.analysis.runs import Run
from dctps.analysis.style import BLACK, STYLES, new_figure, save, style
from dctps.benchmarking.initial import read_examined
from dctps.experiments.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEW = 12  # weights of a layer, up to which the insets reach


@dataclass(frozen=True)
class Layers:
    """The weights that train in each layer of a run.

    Attributes:
        run: the run.
        names: of the layers, from the input on.
        nnz: weights that train in each.
        emptied: how many layers have neither such a weight nor an offset, so that no signal passes them.
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


def figure5(
    runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Mapping[RunConfig, str], out: Path
) -> list[Path]:
    """Draw the weights per layer, and accuracy against emptied layers of the runs that are trained.

    The trained ones are those among `wanted` with an accuracy; the others are drawn by layer.
    """
    by_config = {run.config: run for run in runs}
    sparse = [by_config[c] for c in wanted if c in by_config and c.density is not None]
    found = [layers for run in sparse if (layers := layers_of(run)) is not None]
    untrained = [layers for layers in found if layers.run.summary is None]
    trained = [layers for layers in found if layers.run.summary is not None]
    files = save(out, "figure5", _layer_rows(untrained), draw_layers(untrained)) if untrained else []
    if trained:
        files += save(out, "figure5-accuracy", _accuracy_rows(trained), draw_accuracy(trained))
    return files


def draw_layers(found: Sequence[Layers]) -> Figure:
    """A column for each density, a row for each family; the insets are the layers with few weights."""
    densities = sorted({layers.run.config.density or 1 for layers in found}, reverse=True)
    figure = new_figure(3.6 * len(densities), 0.8 + 3.4 * len(ROWS))
    grid = figure.subplots(len(ROWS), len(densities), sharex=True, sharey=True, squeeze=False)
    means = _means(found)
    for axes_row, (title, family) in zip(grid, ROWS.items(), strict=True):
        for axes, density in zip(axes_row, densities, strict=True):
            inset = axes.inset_axes((0.16, 0.045, 0.80, 0.27))
            for (method, at), nnz in means.items():
                if method in family and at == density:
                    _draw(axes, method, nnz, label=_label(method, found, density))
                    _draw(inset, method, nnz, label="", linestyle="")
            axes.set_yscale("symlog", linthresh=1)
            axes.minorticks_off()
            inset.set_ylim(-1, _FEW)
            inset.tick_params(labelsize=6)
            inset.set_xticks([])
            axes.tick_params(labelsize=8)
            axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.legend(fontsize=6, loc="upper left", ncols=2, handlelength=2.6, columnspacing=1.0)
        axes_row[0].set_ylabel(f"weights that train\n({title})", fontsize=9)
    largest = max(max(nnz) for nnz in means.values())
    grid[0, 0].set_ylim(-600, largest * 300)  # room for the insets below 0 and the legends above
    grid[0, 0].set_yticks([0, *(10**power for power in range(math.ceil(math.log10(largest)) + 1))])
    for axes, density in zip(grid[0], densities, strict=True):
        axes.set_title(f"density {100 * density:g}%", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("layer, from the input on", fontsize=9)
    model = found[0].run.config.model
    figure.suptitle(
        f"{MODELS.get(model, model)}: weights that train in each layer at initialisation; inset: layers with "
        f"up to {_FEW}",
        fontsize=11,
    )
    return figure


def draw_accuracy(found: Sequence[Layers]) -> Figure:
    """Test accuracy against the number of emptied layers, a mark for each run."""
    models = list(dict.fromkeys(layers.run.config.model for layers in found))
    figure = new_figure(5.6 * len(models), 4.6)
    grid = figure.subplots(1, len(models), squeeze=False, sharey=True)
    for axes, model in zip(grid[0], models, strict=True):
        those = [layers for layers in found if layers.run.config.model == model]
        for method in sorted({la.run.config.method for la in those}, key=list(STYLES).index):
            look = style(method)
            of_method = [layers for layers in those if layers.run.config.method == method]
            line = look.of_line() | {"linestyle": ""}
            x = [layers.emptied for layers in of_method]
            y = [100 * (layers.run.test_accuracy or 0) for layers in of_method]
            axes.plot(x, y, **line, markersize=7)
            for layers, at, accuracy in zip(of_method, x, y, strict=True):
                if at:
                    text = f"{100 * (layers.run.config.density or 1):g}%"
                    axes.annotate(text, (at, accuracy), (5, 4), textcoords="offset points", fontsize=7)
        classes = 10 if those[0].run.config.dataset != "cifar100" else 100
        axes.axhline(100 / classes, color=BLACK, linestyle=":", linewidth=1, label="chance")
        axes.set_title(MODELS.get(model, model), fontsize=10)
        axes.set_xlabel("layers without any weight or offset", fontsize=9)
        axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
        axes.set_axisbelow(True)
    grid[0, 0].set_ylabel("test accuracy (%)", fontsize=9)
    found_marks: dict[str, Any] = {}
    for axes in grid[0]:
        handles, labels = axes.get_legend_handles_labels()
        found_marks |= dict(zip(labels, handles, strict=True))
    marks, names = list(found_marks.values()), list(found_marks)
    figure.legend(marks, names, loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _draw(axes: Axes, method: str, nnz: Sequence[float], **line: Any) -> None:
    usual = style(method).of_line() | {"markersize": 3, "linewidth": 0.5, "markeredgewidth": 0.7}
    axes.plot(range(1, len(nnz) + 1), nnz, **usual | line)


def _label(method: str, found: Sequence[Layers], density: float) -> str:
    emptied = [
        la.emptied for la in found if la.run.config.method == method and la.run.config.density == density
    ]
    few = f": {statistics.fmean(emptied):g} empty" if any(emptied) else ""
    return style(method).label + few


def _means(found: Sequence[Layers]) -> dict[tuple[str, float], list[float]]:
    """Over the seeds, by method and density."""
    seeds: dict[tuple[str, float], list[list[int]]] = {}
    for layers in found:
        config = layers.run.config
        seeds.setdefault((config.method, config.density or 1), []).append(layers.nnz)
    return {
        key: [statistics.fmean(column) for column in zip(*those, strict=True)] for key, those in seeds.items()
    }


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
            "mean": statistics.fmean(la.nnz[i] for la in those),
            "std": statistics.stdev(la.nnz[i] for la in those) if len(those) > 1 else None,
            "n": len(those),
            "emptied_layers": statistics.fmean(la.emptied for la in those),
        }
        for config, those in groups.items()
        for i, name in enumerate(those[0].names)
    ]


def _accuracy_rows(found: Sequence[Layers]) -> list[dict[str, Any]]:
    return [
        {
            "model": la.run.config.model,
            "dataset": la.run.config.dataset,
            "method": la.run.config.method,
            "density": la.run.config.density,
            "seed": la.run.config.seed,
            "layers": len(la.nnz),
            "emptied_layers": la.emptied,
            "test_accuracy": la.run.test_accuracy,
        }
        for la in found
    ]
