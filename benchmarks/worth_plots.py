"""The plots of docs/worth.md; they need matplotlib (extra `figures`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import figure_tables
import worth

from dctps.analysis.accuracy import draw_panels
from dctps.analysis.curves import Panel
from dctps.analysis.style import image
from dctps.files import write_atomically


def plots(folder: Path) -> None:
    """worth.png, against density, and worth-trained.png, against all numbers trained."""
    panels = [panel for name in worth.COMPARED for panel in panels_of(worth.read(name))]
    for stem, x in (("worth", "density"), ("worth-trained", "trained")):
        figure = draw_panels(panels, "test accuracy", x)  # type: ignore[arg-type]
        write_atomically(folder / f"{stem}.png", image(figure, "png"))


def panels_of(rows: Sequence[worth.Row]) -> list[Panel]:
    """A point for each method and density: the most accurate of the settings that were tried."""
    return figure_tables.panels_of([_point(seeds) for seeds in worth.best(rows)])


def _point(seeds: Sequence[worth.Row]) -> worth.Row:
    """The seeds of a setting as a row of a figure's file."""
    values = " ".join(row["test_accuracy"] for row in seeds)
    return seeds[0] | {"values": values, "wanted": str(len(seeds)), "missing": ""}
