"""Accuracy against density or numbers trained, a curve for each method: the numbers of Figures 1, 2 and 3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dctps.analysis.aggregate import Cell, over_seeds, setting
from dctps.analysis.runs import Run
from dctps.analysis.style import in_order
from dctps.experiments.config import RunConfig

Rows = list[dict[str, Any]]
Notes = Mapping[RunConfig, str]  # why runs are missing
QUANTITIES: dict[str, Callable[[Run], float | None]] = {
    "test accuracy": lambda run: run.test_accuracy,
    "maximum validation accuracy": lambda run: run.max_val_accuracy,
}
FIELDS = ("model", "dataset", "epochs", "train_images", "image_size")  # that the runs of a panel share
PanelKey = tuple[str, str, int, int | None, int | None]


@dataclass(frozen=True)
class Point:
    """A method at a density, and the cell of its runs; `weights` train, and `numbers` in all.

    `numbers` are the weights with alphas, biases, norms and whatever else the optimizer has.
    """

    density: float
    weights: int | None
    cell: Cell
    numbers: int | None = None


@dataclass(frozen=True)
class Panel:
    """The runs of one network on one data set that train for as long.

    `images` are those that every run trains on in an epoch (None: all), `pixels` is the side that they were
    resized to (None: their own). Each method has its points from the densest. `flat` has a point of each
    method without a density that is wanted: the dense network, its norms alone.
    """

    model: str
    dataset: str
    epochs: int
    images: int | None
    pixels: int | None
    curves: dict[str, list[Point]]
    flat: dict[str, Point]

    @property
    def dense(self) -> Cell | None:
        """Of the dense network, if that is wanted."""
        return self.flat["dense"].cell if "dense" in self.flat else None

    @property
    def title(self) -> str:
        """For a reader."""
        names = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "tinyimagenet": "Tiny ImageNet"}
        return f"{MODELS.get(self.model, self.model)}, {names.get(self.dataset, self.dataset)}"

    @property
    def key(self) -> PanelKey:
        """What its runs have in common, as of `panel_of`."""
        return self.model, self.dataset, self.epochs, self.images, self.pixels

    @property
    def effort(self) -> str:
        """How long its runs train."""
        images = "" if self.images is None else f" of {self.images:,} images"
        pixels = "" if self.pixels is None else f", {self.pixels} x {self.pixels} pixels"
        return f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}{images}{pixels}"

    @property
    def rows(self) -> dict[str, list[Point]]:
        """Its curves, and a point for each method without a density, which is given as 1."""
        return self.curves | {method: [point] for method, point in self.flat.items()}

    @property
    def cells(self) -> list[Cell]:
        """Of all its rows."""
        return [point.cell for row in self.rows.values() for point in row]

    @property
    def densities(self) -> list[float]:
        """Of its curves, the largest first."""
        return sorted({point.density for curve in self.curves.values() for point in curve}, reverse=True)

    @property
    def empty(self) -> bool:
        """Whether no run has a value."""
        return all(cell.missing for cell in self.cells)


MODELS = {
    "lenet5": "LeNet-5", "resnet18": "ResNet18", "resnet20": "ResNet-20", "resnet50": "ResNet50",
    "vgg19": "VGG19", "mobilenetv2": "MobileNetV2", "fixup-resnet110": "FixupResNet110",
}  # fmt: skip


def models_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """The networks that rows are of, for a reader."""
    return ", ".join(dict.fromkeys(MODELS.get(str(row["model"]), str(row["model"])) for row in rows))


def panel_of(config: RunConfig) -> PanelKey:
    """What runs of one panel have in common: the first attributes of `Panel`."""
    return config.model, config.dataset, config.epochs, config.train_images, config.image_size


def curve_of(config: RunConfig) -> str:
    """The name of a run's curve: its method, and `fan-in` behind it where values were drawn so."""
    return config.method if config.init == RunConfig.init else f"{config.method} {config.init}"


def make_panels(
    runs: Sequence[Run], wanted: Sequence[RunConfig], notes: Notes, value: Callable[[Run], float | None]
) -> list[Panel]:
    """Group runs, and what is wanted, by network, data set and effort; `value` is averaged over the seeds."""
    cells = over_seeds(runs, value, wanted, notes)
    finished = {setting(run.config): run for run in runs if run.summary is not None}
    panels: dict[PanelKey, Panel] = {}
    for config, cell in cells.items():
        key, run = panel_of(config), finished.get(config)
        panel = panels.setdefault(key, Panel(*key, {}, {}))
        counts = (None, None) if run is None else (run.weights_trained, run.numbers_trained)
        if config.density is None:
            panel.flat[config.method] = Point(1.0, None, cell, counts[1])
        else:
            point = Point(config.density, counts[0], cell, counts[1])
            panel.curves.setdefault(curve_of(config), []).append(point)
    for key, panel in panels.items():
        # The methods as every figure has them; of each the densest first.
        curves = {
            method: sorted(panel.curves[method], key=lambda point: -point.density)
            for method in in_order(panel.curves)
        }
        panels[key] = replace(panel, curves=curves)
    return list(panels.values())


def rows_of(panels: Sequence[Panel]) -> Rows:
    """The numbers behind a figure, a row for each method at each density."""
    return [
        {
            **dict(zip(FIELDS, panel.key, strict=True)),
            "method": method,
            "density": None if method in panel.flat else point.density,
            "weights_trained": point.weights,
            "numbers_trained": point.numbers,
            "mean": _rounded(point.cell.mean),
            "std": _rounded(point.cell.std),
            "n": point.cell.n,
            "wanted": point.cell.wanted,
            "values": " ".join(f"{v:.4f}" for v in point.cell.values),
            "missing": point.cell.reason,
        }
        for panel in panels
        for method, row in panel.rows.items()
        for point in row
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
