"""Figure 4: singular values of the Jacobian of the outputs by the inputs, per method and density."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dctps.analysis import style as draw
from dctps.analysis.aggregate import setting
from dctps.analysis.curves import Notes, models_of
from dctps.analysis.runs import Run
from dctps.benchmarking.initial import INITIAL, TRAINED, read_examined
from dctps.experiments.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMALL = 1e-6  # of the largest: float32 cannot tell less from 0
_SHOWN = 1e-12  # of the largest value in the figure: smaller ones are counted in words

COLUMNS: dict[str, tuple[str, ...]] = {
    "offset, or random supports": (
        "dctps", "sdctps", "random-uniform", "random-epl", "random-epf", "random-erk"
    ),
    "scored supports": ("dctps", "magnitude", "snip", "grasp", "synflow", "force", "iter-snip"),
}  # fmt: skip


_NOT_YET = "not computed yet"
Row = Mapping[str, Any]
Key = tuple[str, float, int]  # method, density, steps


@dataclass
class Spectra:
    """The spectra of a method at a density after some steps of training, a descending one for each seed.

    There should be as many as `wanted`; `note` says why some are missing.
    """

    config: RunConfig
    steps: int
    seeds: list[list[float]] = field(default_factory=list)
    wanted: int = 0
    note: str = ""

    def count(self, least: float = 0.0) -> float | None:
        """How many are above `least` times the largest (0: not exactly 0), on average over the seeds."""
        counts = [sum(s > least * max(seed) for s in seed) for seed in self.seeds]
        return statistics.fmean(counts) if counts else None

    def identity(self) -> dict[str, Any]:
        """The fields that rows of the CSV files share."""
        config = self.config
        return {
            **{name: getattr(config, name) for name in ("model", "dataset", "method", "density")},
            "steps": self.steps,
            "n": len(self.seeds),
            "wanted": self.wanted,
        }


def collect(runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, name: str) -> list[Spectra]:
    """The spectra in the files `name` of the run folders, by method and falling density."""
    paths = {run.config: run.path for run in runs}
    found: dict[RunConfig, Spectra] = {}
    for config in wanted:
        steps = 0 if name == INITIAL else _steps(config)
        spectra = found.setdefault(setting(config), Spectra(setting(config), steps))
        spectra.wanted += 1
        if examined := read_examined(paths[config], name) if config in paths else None:
            spectra.seeds.append(examined["spectrum"])
        else:
            spectra.note = notes.get(config, spectra.note)
    order = draw.in_order({s.config.method for s in found.values()})
    return sorted(found.values(), key=lambda s: (order.index(s.config.method), -(s.config.density or 1)))


def figure4(runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, out: Path) -> list[Path]:
    """Draw all spectra, write down every value, and in figure4-summary.csv what becomes of each spectrum."""
    initial = collect(runs, wanted, notes, INITIAL)
    briefly = [c for c in wanted if c.train_images is not None]
    at_start = [s for s in initial if s.config.train_images is None]
    trained = collect(runs, briefly, notes, TRAINED)
    values = [
        {
            **s.identity(),
            "index": i,
            "mean": f"{statistics.fmean(seeds):.6g}",
            "std": f"{statistics.stdev(seeds):.3g}" if len(seeds) > 1 else "",
        }
        for s in at_start + trained
        for i, seeds in enumerate(zip(*s.seeds, strict=True), 1)
    ]
    summary = [_summary(s) for s in at_start + trained]
    files = draw.save(out, "figure4", values, draw_spectra(summary, values))
    return files + draw.save(out, "figure4-summary", summary)


def draw_spectra(summary: Sequence[Row], values: Sequence[Row]) -> Figure:
    """A line of panels for each density, a column for each family; `values` are the rows of figure4.csv."""
    from matplotlib.lines import Line2D  # noqa: PLC0415 (an extra)

    start = [row for row in summary if not int(row["steps"])]
    trained = {row["method"]: int(row["steps"]) for row in summary if int(row["steps"])}
    columns = {title: [row for row in start if row["method"] in some] for title, some in COLUMNS.items()}
    for steps in trained.values():
        columns[f"before and after {steps} steps"] = [row for row in summary if row["method"] in trained]
    columns = {title: members for title, members in columns.items() if members}
    densities = sorted({float(row["density"]) for row in summary}, reverse=True)
    spectra: dict[Key, list[Row]] = {}
    for row in values:
        spectra.setdefault(_key(row), []).append(row)
    shown = [float(row["mean"]) for row in values if float(row["mean"]) > 0]
    top = max(shown, default=1.0)
    low = max(min(shown, default=0.1), top * _SHOWN)

    width = (draw.PAGE - 0.6) / len(columns) - 0.1
    cells = {
        (density, title): [row for row in members if float(row["density"]) == density]
        for density in densities
        for title, members in columns.items()
    }
    notes = {
        cell: "\n".join(draw.wrapped(line, width) for line in _notes(rows, spectra, low))
        for cell, rows in cells.items()
    }
    lines = sum(max(notes[density, title].count("\n") for title in columns) for density in densities)
    figure = draw.new_figure(1.9 + 1.6 * len(densities) + 0.14 * lines)
    grid = figure.subplots(len(densities), len(columns), sharex=True, sharey=True, squeeze=False)
    for axes, (cell, rows) in zip(grid.flat, cells.items(), strict=True):
        for row in rows:
            _draw(axes, row, spectra.get(_key(row), []), low)
        beside = f"density {100 * cell[0]:g}%\nsingular value" if axes in grid[:, 0] else ""
        below = ["index of the singular value"] if axes in grid[-1] else []
        if axes.lines:
            below += [notes[cell]] if notes[cell] else []
        else:
            draw.say(axes, notes[cell], width)
        draw.dress(axes, x="\n".join(below), y=beside)
    last = max((int(row["index"]) for row in values), default=1)
    grid[0, 0].set(yscale="log", ylim=draw.decades(low / 1.5, top * 1.5), xlim=(1 - 0.04 * last, 1.04 * last))
    for axes in grid.flat:
        axes.minorticks_off()
    for axes, (title, members) in zip(grid[0], columns.items(), strict=True):
        looks = {line["label"]: Line2D([], [], **line) for line in map(_line, members)}
        wide = max(1, int(width / 1.9))
        draw.head(axes, draw.wrapped(title, width), list(looks.values()), list(looks), columns=wide)
    counts = sorted({int(row["n"]) for row in summary if int(row["n"])}) or [0]
    many = f"n = {' or '.join(map(str, counts))} of {max(int(row['wanted']) for row in summary)}"
    draw.entitle(figure, f"{models_of(summary)}: Jacobian of the outputs by the inputs, {many}")
    return figure


def _draw(axes: Axes, row: Row, values: Sequence[Row], low: float) -> None:
    drawn = [(int(v["index"]), float(v["mean"])) for v in values if float(v["mean"]) >= low]
    if not drawn:
        return
    index, mean = np.array(drawn).T
    axes.plot(index, mean, **_line(row), markevery=max(1, len(values) // 6))
    if values[0]["std"]:
        std = np.array([float(v["std"]) for v in values[: len(drawn)]])
        below, color = np.maximum(mean - std, low), draw.style(row["method"]).color
        axes.fill_between(index, below, mean + std, color=color, alpha=0.15, linewidth=0)


def _line(row: Row) -> dict[str, Any]:
    look = draw.style(row["method"])
    line = look.of_line() | {"markersize": 4, "linewidth": 1.2}
    if int(row["steps"]):
        line |= {"linestyle": ":", "marker": "", "linewidth": 2.5}
        line["label"] = f"{look.label}, {row['steps']} steps"
    return line


def _notes(rows: Sequence[Row], spectra: Mapping[Key, Sequence[Row]], low: float) -> list[str]:
    """What of the spectra is not in the picture."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        label = _line(row)["label"]
        values = spectra.get(_key(row), [])
        if not values:
            kind = "missing" if row["missing"] in ("", _NOT_YET) else "failed"
            kinds.setdefault(kind, []).append(label)
            continue
        zeros = len(values) - float(row["not_zero"])
        below = sum(0 < float(v["mean"]) < low for v in values)
        if zeros == len(values):
            kinds.setdefault("all 0", []).append(label)
        elif zeros or below:
            counts = [f"{zeros:g} are 0"] * bool(zeros) + [f"{below} below the axis"] * bool(below)
            kinds[f"{label}, of {len(values)}"] = counts
        if int(row["n"]) < int(row["wanted"]):
            kinds.setdefault(f"n = {row['n']} of {row['wanted']}", []).append(label)
    return [f"{kind}: {', '.join(labels)}" for kind, labels in kinds.items()]


def _key(row: Row) -> Key:
    return row["method"], float(row["density"]), int(row["steps"])


def _steps(config: RunConfig) -> int:
    assert config.train_images is not None, "only such runs are drawn after their training"
    assert config.batch_size is not None, "resolve() fills it in"
    return config.epochs * math.ceil(config.train_images / config.batch_size)


def _summary(spectra: Spectra) -> dict[str, Any]:
    mean = [statistics.fmean(values) for values in zip(*spectra.seeds, strict=True)]
    return {
        **spectra.identity(),
        "values": len(mean) or "",
        "not_zero": spectra.count(),
        "above_1e-6_of_largest": spectra.count(_SMALL),
        "largest": f"{mean[0]:.4g}" if mean else "",
        "median": f"{statistics.median(mean):.4g}" if mean else "",
        "smallest": f"{mean[-1]:.4g}" if mean else "",
        "missing": "" if len(spectra.seeds) == spectra.wanted else spectra.note or _NOT_YET,
    }
