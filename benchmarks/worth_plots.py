"""The plots of docs/worth.md; they need matplotlib (extra `figures`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import figure_tables
import worth

from dctps.analysis.accuracy import Axis, draw_families, draw_panels
from dctps.analysis.curves import Panel
from dctps.analysis.style import image
from dctps.files import write_atomically

# Of more methods a plot of all would be too full.
SHOWN = ("dctps", "sdctps", "dctps-rigl", "sdctps-rigl", "random-epl", "synflow", "rigl", "norms", "dense")
AXES: dict[str, Axis] = {"worth": "density", "worth-trained": "trained"}


def plots(folder: Path) -> None:
    """A few methods by density and by all numbers trained, and LeNet-5's figure 1 of every method."""
    rows = [row for row in worth.compared_networks() if row["method"] in SHOWN]
    figures = {stem: draw_panels(panels_of(rows), "test accuracy", x) for stem, x in AXES.items()}
    (lenet,) = panels_of([row for row in worth.read("lenet") if row["density"]])
    figures["worth-lenet"] = draw_families(lenet, "test accuracy")
    for stem, figure in figures.items():
        write_atomically(folder / f"{stem}.png", image(figure, "png"))


def panels_of(rows: Sequence[worth.Row]) -> list[Panel]:
    """A point for each method and density: the most accurate of the settings that were tried."""
    return figure_tables.panels_of([_point(seeds) for seeds in worth.best(rows)])


def _point(seeds: Sequence[worth.Row]) -> worth.Row:
    """The seeds of a setting as a row of a figure's file."""
    values = " ".join(row["test_accuracy"] for row in seeds)
    return seeds[0] | {"values": values, "wanted": str(len(seeds)), "missing": ""}
