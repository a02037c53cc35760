"""Accuracy against density, a curve for each method: the numbers of Figures 1, 2 and 3."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dctps.analysis.aggregate import Cell, over_seeds, setting
from dctps.analysis.runs import Run
from dctps.analysis.style import in_order
from dctps.experiments.config import RunConfig

Rows = list[dict[str, Any]]
PanelKey = tuple[str, str, int, int | None, int | None]


@dataclass(frozen=True)
class Point:
    """A method at a density: how many weights train, and the cell of its runs."""

    density: float
    weights: int | None
    cell: Cell


@dataclass(frozen=True)
class Panel:
    """The runs of one network on one data set that train for as long.

    `images` are those that every run trains on in an epoch (None: all), `pixels` is the side that they were
    resized to (None: their own). Each method has its points from the densest, and `dense` is the cell of the
    dense network, if that is wanted.
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
        return panel_of(config) == (self.model, self.dataset, self.epochs, self.images, self.pixels)

    @property
    def effort(self) -> str:
        """How long its runs train."""
        images = "" if self.images is None else f" of {self.images:,} images"
        pixels = "" if self.pixels is None else f", {self.pixels} x {self.pixels} pixels"
        return f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}{images}{pixels}"

    @property
    def seeds(self) -> int:
        """How many runs there should be of each setting, at most."""
        return max(cell.wanted for cell in self.cells)

    @property
    def cells(self) -> list[Cell]:
        """Of all its points, and of the dense network."""
        dense = [] if self.dense is None else [self.dense]
        return [point.cell for curve in self.curves.values() for point in curve] + dense

    @property
    def empty(self) -> bool:
        """Whether no run has a value."""
        return all(cell.missing for cell in self.cells)


MODELS = {
    "lenet5": "LeNet-5", "resnet18": "ResNet18", "resnet50": "ResNet50", "vgg19": "VGG19",
    "mobilenetv2": "MobileNetV2", "fixup-resnet110": "FixupResNet110",
}  # fmt: skip


def models_of(rows: Iterable[Mapping[str, Any]]) -> str:
    """The networks that rows are of, for a reader."""
    return ", ".join(dict.fromkeys(MODELS.get(str(row["model"]), str(row["model"])) for row in rows))


def panel_of(config: RunConfig) -> PanelKey:
    """What runs of one panel have in common: the first attributes of `Panel`."""
    return config.model, config.dataset, config.epochs, config.train_images, config.image_size


def make_panels(
    runs: Sequence[Run],
    wanted: Sequence[RunConfig],
    notes: Mapping[RunConfig, str],
    value: Callable[[Run], float | None],
) -> list[Panel]:
    """Group runs, and what is wanted, by network, data set and effort; `value` is averaged over the seeds."""
    cells = over_seeds(runs, value, wanted, notes)
    weights = {setting(run.config): run.weights_trained for run in runs if run.summary is not None}
    panels: dict[PanelKey, Panel] = {}
    dense: dict[PanelKey, Cell] = {}
    for config, cell in cells.items():
        key = panel_of(config)
        panel = panels.setdefault(key, Panel(*key, {}, None))
        if config.density is None:
            dense[key] = cell
        else:
            point = Point(config.density, weights.get(config), cell)
            panel.curves.setdefault(config.method, []).append(point)
    for key, panel in panels.items():
        # The methods as every figure has them; of each the densest first.
        curves = {
            method: sorted(panel.curves[method], key=lambda point: -point.density)
            for method in in_order(panel.curves)
        }
        panels[key] = replace(panel, curves=curves, dense=dense.get(key))
    return list(panels.values())


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


def panels_of(rows: Sequence[Mapping[str, str]]) -> list[Panel]:
    """The panels behind the rows of `rows_of` in a file; their values are rounded."""
    panels: dict[PanelKey, Panel] = {}
    for row in rows:
        images, pixels = (int(row[name]) if row[name] else None for name in ("train_images", "image_size"))
        key = (row["model"], row["dataset"], int(row["epochs"]), images, pixels)
        panel = panels.setdefault(key, Panel(*key, {}, None))
        cell = Cell(tuple(map(float, row["values"].split())), int(row["wanted"]), row["missing"])
        if row["method"] == "dense":
            panels[key] = replace(panel, dense=cell)
        else:
            weights = int(row["weights_trained"]) if row["weights_trained"] else None
            curve = panel.curves.setdefault(row["method"], [])
            curve.append(Point(float(row["density"]), weights, cell))
    return list(panels.values())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
