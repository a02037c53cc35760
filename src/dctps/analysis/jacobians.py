"""Figure 4: singular values of the Jacobian of the outputs by the inputs, per method and density."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dctps.analysis.aggregate import setting
from dctps.analysis.curves import MODELS
from dctps.analysis.runs import Run
from dctps.analysis.style import STYLES, new_figure, save, style
from dctps.benchmarking.initial import INITIAL, TRAINED, read_examined
from dctps.experiments.config import RunConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What float32 can tell from nothing beside the largest.
_SMALL = 1e-6
_SHOWN = 3e-13  # of the largest value in the figure

ROWS: dict[str, tuple[str, ...]] = {
    "offset, or random supports": (
        "dctps", "sdctps", "random-uniform", "random-epl", "random-epf", "random-erk",
    ),
    "scored supports": ("dctps", "magnitude", "snip", "grasp", "synflow", "force", "iter-snip"),
}  # fmt: skip


@dataclass(frozen=True)
class Spectra:
    """The spectra of a method at a density, one for each seed.

    Attributes:
        config: without the seed.
        steps: that the networks have trained for.
        seeds: spectra, each descending.
        wanted: how many there should be.
        note: why some are missing.
    """

    config: RunConfig
    steps: int
    seeds: list[list[float]]
    wanted: int
    note: str = ""

    @property
    def mean(self) -> list[float]:
        """Of each singular value over the seeds, by its place in the order."""
        return [statistics.fmean(values) for values in zip(*self.seeds, strict=True)]

    @property
    def std(self) -> list[float] | None:
        """Likewise; None below two seeds."""
        if len(self.seeds) < 2:
            return None
        return [statistics.stdev(values) for values in zip(*self.seeds, strict=True)]

    def count(self, least: float = 0.0) -> float | None:
        """How many are above `least` times the largest (0: not exactly 0), on average over the seeds."""
        if not self.seeds:
            return None
        return statistics.fmean(sum(s > least * max(seed) for s in seed) for seed in self.seeds)


def collect(
    runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Mapping[RunConfig, str], name: str
) -> list[Spectra]:
    """The spectra in the files `name` of the run folders, by method and falling density."""
    paths = {run.config: run.path for run in runs}
    found: dict[RunConfig, Spectra] = {}
    for config in wanted:
        steps = 0 if name == INITIAL else _steps(config)
        spectra = found.setdefault(setting(config), Spectra(setting(config), steps, [], 0))
        examined = read_examined(paths[config], name) if config in paths else None
        seeds = spectra.seeds + ([examined["spectrum"]] if examined else [])
        note = "" if examined else notes.get(config, spectra.note)
        found[setting(config)] = Spectra(spectra.config, steps, seeds, spectra.wanted + 1, note)
    order = list(STYLES)
    return sorted(found.values(), key=lambda s: (order.index(s.config.method), -(s.config.density or 1)))


def figure4(
    runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Mapping[RunConfig, str], out: Path
) -> list[Path]:
    """Draw all spectra, write down every value, and in figure4-summary.csv what becomes of each spectrum."""
    initial = collect(runs, wanted, notes, INITIAL)
    briefly = [c for c in wanted if c.train_images is not None]
    at_start = [s for s in initial if s.config.train_images is None]
    trained = collect(runs, briefly, notes, TRAINED)
    values = [
        {**_cell(s), "index": i + 1, "mean": f"{m:.6g}", "std": "" if s.std is None else f"{s.std[i]:.3g}"}
        for s in at_start + trained
        for i, m in enumerate(s.mean if s.seeds else [])
    ]
    files = save(out, "figure4", values, draw_spectra(at_start, trained))
    return files + save(out, "figure4-summary", [_summary(s) for s in at_start + trained])


def draw_spectra(initial: Sequence[Spectra], trained: Sequence[Spectra]) -> Figure:
    """A column for each density, a row for each family of methods, and one for the trained networks."""
    densities = sorted({s.config.density or 1 for s in initial}, reverse=True)
    lines: list[tuple[str, list[Spectra]]] = [
        (title, [s for s in initial if s.config.method in family]) for title, family in ROWS.items()
    ]
    if trained:
        methods = {s.config.method for s in trained}
        steps = trained[0].steps
        lines.append(
            (
                f"before and after {steps} steps",
                [s for s in initial if s.config.method in methods] + [*trained],
            )
        )
    figure = new_figure(3.3 * len(densities), 0.8 + 3.0 * len(lines))
    grid = figure.subplots(len(lines), len(densities), sharex=True, sharey=True, squeeze=False)
    shown = [v for s in [*initial, *trained] for seed in s.seeds for v in seed if v > 0]
    top = max(shown, default=1.0)
    low = max(min(shown, default=0.1), top * _SHOWN)
    for axes_row, (title, those) in zip(grid, lines, strict=True):
        for axes, density in zip(axes_row, densities, strict=True):
            for spectra in those:
                if spectra.config.density == density:
                    _draw(axes, spectra, low)
            axes.set_yscale("log")
            axes.grid(visible=True, color="#E4E4E4", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(labelsize=8)
            axes.legend(fontsize=6.5, loc="lower left", handlelength=3.0, framealpha=0.9)
        axes_row[0].set_ylabel(f"singular value\n({title})", fontsize=9)
    span = math.log10(top / low)
    grid[0, 0].set_ylim(low / 10 ** (0.65 * span + 1), 10 ** (0.05 * span) * top)  # room for the legends
    for axes, density in zip(grid[0], densities, strict=True):
        axes.set_title(f"density {100 * density:g}%", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("index of the singular value", fontsize=9)
    counts = sorted({len(s.seeds) for s in [*initial, *trained] if s.seeds}) or [0]
    model = MODELS.get(initial[0].config.model, initial[0].config.model)
    many = f"{' or '.join(map(str, counts))} of {max(s.wanted for s in initial)}"
    figure.suptitle(
        f"{model}: Jacobian of the outputs by the inputs at initialisation, n = {many}; no mark at 0",
        fontsize=11,
    )
    return figure


def _draw(axes: Axes, spectra: Spectra, low: float) -> None:
    look = style(spectra.config.method)
    line = look.of_line() | {"label": _label(spectra)}
    if spectra.steps:
        line |= {"linestyle": ":", "marker": "", "linewidth": 2.5}
    mean = spectra.mean if spectra.seeds else []
    drawn = [(i, value) for i, value in enumerate(mean, 1) if value >= low]
    every = max(1, len(mean) // 6)
    axes.plot(*(zip(*drawn, strict=True) if drawn else ([], [])), **line, markersize=4.5, markevery=every)
    if (std := spectra.std) is not None and drawn:
        below = [max(value - std[i - 1], low) for i, value in drawn]
        above = [value + std[i - 1] for i, value in drawn]
        axes.fill_between([i for i, _ in drawn], below, above, color=look.color, alpha=0.15, linewidth=0)


def _label(spectra: Spectra) -> str:
    label = style(spectra.config.method).label
    if spectra.steps:
        label += f", {spectra.steps} steps"
    if not spectra.seeds:
        return f"{label}: missing"
    count, total = spectra.count() or 0, len(spectra.seeds[0])
    if count == 0:
        return f"{label}: all 0"
    return label if count == total else f"{label}: {count:g} of {total} not 0"


def _steps(config: RunConfig) -> int:
    assert config.train_images is not None, "only such runs are drawn after their training"
    assert config.batch_size is not None, "resolve() fills it in"
    return config.epochs * math.ceil(config.train_images / config.batch_size)


def _cell(spectra: Spectra) -> dict[str, Any]:
    config = spectra.config
    return {
        "model": config.model,
        "dataset": config.dataset,
        "method": config.method,
        "density": config.density,
        "steps": spectra.steps,
        "n": len(spectra.seeds),
        "wanted": spectra.wanted,
    }


def _summary(spectra: Spectra) -> dict[str, Any]:
    mean = spectra.mean if spectra.seeds else []
    return {
        **_cell(spectra),
        "values": len(mean) or "",
        "not_zero": spectra.count(),
        "above_1e-6_of_largest": spectra.count(_SMALL),
        "largest": f"{mean[0]:.4g}" if mean else "",
        "median": f"{statistics.median(mean):.4g}" if mean else "",
        "smallest": f"{mean[-1]:.4g}" if mean else "",
        "missing": "" if len(spectra.seeds) == spectra.wanted else spectra.note or "not computed yet",
    }
