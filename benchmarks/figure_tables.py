"""The marked parts of docs/figures.md, from what `dctps figure` wrote into benchmarks/results/."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from markdown_tables import table

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


def by_density(rows: Rows, cell: Callable[[dict[str, str]], str]) -> str:
    """A line for each method, a column for each density."""
    densities = sorted({float(row["density"]) for row in rows if row["density"]}, reverse=True)
    cells: dict[str, dict[float, str]] = {}
    for row in rows:
        at = [float(row["density"])] if row["density"] else densities[:1]
        cells.setdefault(row["method"], {}).update(dict.fromkeys(at, cell(row)))
    heads = ["method", *(f"{100 * d:g}%" for d in densities)]
    return table(heads, ([method, *(found.get(d, "") for d in densities)] for method, found in cells.items()))


def accuracy(rows: Rows) -> str:
    """Mean and deviation of each method at each density, a table for each network and effort."""
    panels: dict[tuple[str, ...], Rows] = {}
    for row in rows:
        key = (row["model"], row["dataset"], row["epochs"], row["train_images"], row["image_size"])
        panels.setdefault(key, []).append(row)

    def cell(row: dict[str, str]) -> str:
        if not row["mean"]:
            return "missing"
        text = f"{100 * float(row['mean']):.1f}"
        text += f" ± {100 * float(row['std']):.1f}" if row["std"] else ""
        return text if row["n"] == row["wanted"] else f"{text} (n = {row['n']} of {row['wanted']})"

    parts = []
    for (model, dataset, epochs, images, pixels), those in panels.items():
        of = f" of {int(images):,} images" if images else ""
        of += f", {pixels} x {pixels} pixels" if pixels else ""
        seeds = max(int(row["wanted"]) for row in those)
        parts.append(
            f"{model}, {dataset}, {epochs} epochs{of}, n = {seeds}, in percent:\n\n{by_density(those, cell)}"
        )
    return "\n\n".join(parts)


def number(text: str) -> str:
    """Two digits, or all before the point."""
    value = float(text)
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def spectra(summary: Rows, layers: Rows) -> str:
    """How many singular values are not 0, their range, and how many layers are emptied."""
    emptied = {(row["method"], row["density"]): float(row["emptied_layers"]) for row in layers}

    def cell(row: dict[str, str]) -> str:
        if not row["not_zero"]:
            return "missing"
        count, least = float(row["not_zero"]), float(row["above_1e-6_of_largest"])
        text = f"all {row['values']} are 0" if count == 0 else f"{count:g}"
        if count > 0:
            text += f", {least:g} above" if least < count else ""
            text += f", {number(row['smallest'])} to {number(row['largest'])}"
        empty = emptied.get((row["method"], row["density"]), 0) if row["steps"] == "0" else 0
        return text + (f"; {empty:g} empty" if empty else "")

    def shown(row: dict[str, str]) -> dict[str, str]:
        after = f", after {row['steps']} steps" if row["steps"] != "0" else ""
        return row | {"method": row["method"] + after}

    rows = [shown(row) | {"cell": cell(row)} for row in summary]
    return by_density(rows, lambda row: row["cell"])


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
    """Fill the parts whose figures are there."""
    for name in ("figure1", "figure1-longer", "figure2", "figure3"):
        if (results / f"{name}.csv").exists():
            picture = f"![{name}](../benchmarks/results/{name}.png)"
            made = origin(results / f"{name.removesuffix('-longer')}.json")
            fill(page, name, f"{picture}\n\n{accuracy(read(results / f'{name}.csv'))}\n\n{made}")
    if (results / "figure4-summary.csv").exists():
        table = spectra(read(results / "figure4-summary.csv"), read(results / "figure5.csv"))
        pictures = "\n\n".join(f"![{n}](../benchmarks/results/{n}.png)" for n in ("figure4", "figure5"))
        fill(page, "spectra", f"{table}\n\n{origin(results / 'figure4.json')}\n\n{pictures}")
    if (results / "table1.md").exists():
        made = origin(results / "table1.json")
        fill(page, "table1", f"{(results / 'table1.md').read_text()}\n{made}")
