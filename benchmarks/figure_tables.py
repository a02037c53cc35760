"""The marked parts of docs/figures.md, from what `dctps figure` wrote into benchmarks/results/."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dctps.analysis.accuracy import MANY, draw_families, draw_panels
from dctps.analysis.aggregate import Cell
from dctps.analysis.curves import Panel, PanelKey, Point
from dctps.analysis.jacobians import draw_spectra
from dctps.analysis.layers import draw_layers
from dctps.analysis.style import image
from dctps.files import write_atomically

Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def origin(path: Path) -> str:
    """What made a figure."""
    made = json.loads(path.read_text())
    done = f"{made['finished']} runs trained"
    if made["examined"]:
        done += f", {made['examined']} examined"
    return (
        f"`{made['command']}`: {done}, of {made['runs']}; {made['hardware']}, commit `{made['commit'][:10]}`."
    )


def panels_of(rows: Sequence[Mapping[str, str]]) -> list[Panel]:
    """The panels behind the rows of `rows_of` in a file; their values are rounded."""
    panels: dict[PanelKey, Panel] = {}
    for row in rows:
        images, pixels = (int(row[name]) if row[name] else None for name in ("train_images", "image_size"))
        key = (row["model"], row["dataset"], int(row["epochs"]), images, pixels)
        panel = panels.setdefault(key, Panel(*key, {}, {}))
        cell = Cell(tuple(map(float, row["values"].split())), int(row["wanted"]), row["missing"])
        # Files of an earlier version do not have the numbers.
        weights, numbers = (
            int(n) if (n := row.get(f"{w}_trained")) else None for w in ("weights", "numbers")
        )
        if not row["density"]:
            panel.flat[row["method"]] = Point(1.0, None, cell, numbers)
        else:
            curve = panel.curves.setdefault(row["method"], [])
            curve.append(Point(float(row["density"]), weights, cell, numbers))
    return list(panels.values())


def draw_figures(results: Path) -> None:
    """Draw the pictures again, from the numbers that stand beside them."""
    quantities = {
        "figure1": "maximum validation accuracy", "figure1-longer": "maximum validation accuracy",
        "figure2": "test accuracy", "figure3": "test accuracy",
    }  # fmt: skip
    figures = {}
    for name, quantity in quantities.items():
        if not (results / f"{name}.csv").exists():
            continue
        panels = panels_of(read(results / f"{name}.csv"))
        if len(panels) == 1 and len(panels[0].curves) > MANY:
            figures[name] = draw_families(panels[0], quantity)
        else:
            figures[name] = draw_panels(panels, quantity)
    figures["figure4"] = draw_spectra(read(results / "figure4-summary.csv"), read(results / "figure4.csv"))
    figures["figure5"] = draw_layers(read(results / "figure5.csv"))
    for name, figure in figures.items():
        write_atomically(results / f"{name}.png", image(figure, "png"))


def fill_figures(page: Path, results: Path, fill: Callable[[Path, str, str], None]) -> None:
    """Put the pictures that are there into the page, with what made them; their numbers are in CSV files."""
    parts = {
        "figure1": ["figure1", "figure1-longer"], "figure2": ["figure2"], "figure3": ["figure3"],
        "spectra": ["figure4", "figure5"],
    }  # fmt: skip
    for part, names in parts.items():
        if (results / f"{names[0]}.csv").exists():
            pictures = "\n\n".join(f"![{name}](../benchmarks/results/{name}.png)" for name in names)
            made = origin(results / f"{names[0]}.json")
            fill(page, part, f"{pictures}\n\n{made} Numbers: `benchmarks/results/{names[0]}.csv`.")
    if (results / "table1.md").exists():
        made = origin(results / "table1.json")
        fill(page, "table1", f"{(results / 'table1.md').read_text()}\n{made}")
