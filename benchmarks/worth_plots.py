"""The plots of docs/worth.md; they need matplotlib (extra `figures`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import figure_tables
import worth

from dctps.analysis.accuracy import draw_panels
from dctps.analysis.curves import Panel
from dctps.analysis.style import image, in_order
from dctps.files import write_atomically

# What runs of one panel have in common, and what a point is of beside its method and density.
PANEL = ("model", "dataset", "epochs", "train_images", "image_size")
SETTING = ("allocation", "alpha", "init", "zero_head", "lr", "schedule", "weight_decay")


def plots(folder: Path) -> None:
    """worth.png, against density, and worth-trained.png, against all numbers trained."""
    panels = [panel for name in worth.COMPARED for panel in panels_of(worth.read(name))]
    for stem, x in (("worth", "density"), ("worth-trained", "trained")):
        figure = draw_panels(panels, "test accuracy", x)  # type: ignore[arg-type]
        write_atomically(folder / f"{stem}.png", image(figure, "png"))


def panels_of(rows: Sequence[worth.Row]) -> list[Panel]:
    """A point for each method and density: the most accurate of the settings that were tried."""
    settings: dict[tuple[str, ...], list[worth.Row]] = {}
    for row in rows:
        settings.setdefault(tuple(row[name] for name in (*PANEL, "method", "density", *SETTING)), []).append(
            row
        )
    best: dict[tuple[str, ...], list[worth.Row]] = {}
    for key, seeds in settings.items():
        point = key[: len(PANEL) + 2]
        best[point] = max(best.get(point, []), seeds, key=_accuracy)
    methods = in_order({row["method"] for row in rows})
    order = sorted(
        best.values(), key=lambda seeds: (methods.index(seeds[0]["method"]), -worth.density(seeds[0]))
    )
    return figure_tables.panels_of([_point(seeds) for seeds in order])


def _point(seeds: Sequence[worth.Row]) -> worth.Row:
    """The seeds of a setting as a row of a figure's file."""
    values = " ".join(row["test_accuracy"] for row in seeds)
    return seeds[0] | {"values": values, "wanted": str(len(seeds)), "missing": ""}


def _accuracy(seeds: Sequence[worth.Row]) -> float:
    return mean(float(row["test_accuracy"]) for row in seeds) if seeds else -1.0
