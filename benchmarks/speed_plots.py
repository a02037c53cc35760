"""The plots of docs/performance.md; they need matplotlib (extra `figures`)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from measured import MACHINES, RESULTS, Cell, median, read_cells

from dctps.analysis.style import SMALL, dress, image, key, new_figure, style
from dctps.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plots(folder: Path) -> None:
    """density.png, of the newest machine that has it, and networks.png of the newest."""
    (cells, _), *others = (read_cells(RESULTS / name) for name in MACHINES)
    density = next(
        found["density"] for found in (cells, *(found for found, _ in others)) if "density" in found
    )
    write_atomically(folder / "density.png", image(draw_density(density), "png"))
    steps = [cell for cell in cells.get("network", []) if cell["what"] == "training step"]
    if steps:
        write_atomically(folder / "networks.png", image(draw_networks(steps), "png"))


# Each in the look of the method that it belongs to, as in every other figure.
LOOKS = {"dense": style("dense"), "dct": style("dctps"), "sdct": style("sdctps")}


def draw_density(cells: list[Cell]) -> Figure:
    """Time against density, a panel for each width."""
    sizes = sorted({cell["n"] for cell in cells})
    figure = new_figure(4.6)
    grid = figure.subplots(math.ceil(len(sizes) / 2), 2, squeeze=False, sharex=True, sharey=True)
    for axes, n in zip(grid.flat, sizes, strict=True):
        line = sorted((cell for cell in cells if cell["n"] == n), key=lambda cell: cell["density"])
        for name in ("nn.Linear", "dct", "sdct"):
            look = LOOKS.get(name, LOOKS["dense"]).of_line() | {"label": name, "markersize": 4}
            look |= {"linestyle": "--"} if name == "sdct" else {}  # it lies on the other
            axes.plot([100 * cell["density"] for cell in line], [median(cell, name) for cell in line], **look)
        axes.axvline(100 * math.log2(n) / n, color="0.6", linewidth=1, label="log2(n) / n")
        axes.set(xscale="log", yscale="log")
        beside = "forward and backward, ms" if axes in grid[:, 0] else ""
        dress(axes, title=f"n = {n}", x="density, %" if axes in grid[-1] else "", y=beside)
    key(figure)
    return figure


def draw_networks(steps: list[Cell]) -> Figure:
    """Training steps beside the dense network's, a group of bars for each network."""
    figure = new_figure(3.0)
    axes = figure.subplots()
    for i, ((name, look), hatch) in enumerate(zip(LOOKS.items(), ("", "//", ".."), strict=True)):
        shares = [median(cell, name) / median(cell, "dense") for cell in steps]
        places = [j + 0.28 * (i - 1) for j in range(len(steps))]
        axes.bar(places, shares, 0.25, color=look.color, hatch=hatch, edgecolor="white", label=name)
        for place, cell, share in zip(places, steps, shares, strict=True):
            axes.text(place, share, f"{median(cell, name):.0f}", ha="center", va="bottom", fontsize=SMALL)
    dress(axes, title="training step; the numbers are milliseconds", y="share of dense")
    axes.margins(y=0.1)
    axes.grid(visible=False)
    axes.set_xticks(range(len(steps)), [f"{cell['model']}\nbatch {cell['batch']}" for cell in steps])
    axes.spines[["top", "right"]].set_visible(False)
    key(figure)
    return figure
