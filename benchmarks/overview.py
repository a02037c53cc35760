"""docs/figures/overview.png: what a layer's weight is, and what it reaches with few numbers. Extra `figures`.

Called by `benchmarks/tables.py`.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import torch
import worth

import dctps
from dctps.analysis.style import BLACK, STYLES, dress, image, new_figure
from dctps.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDE = 24


def plot(folder: Path) -> None:
    """Write the picture."""
    write_atomically(folder / "overview.png", image(draw(), "png"))


def draw() -> Figure:
    """W = alpha D + S as three matrices, and accuracy against density beside them."""
    figure = new_figure(1.9)
    grid = figure.add_gridspec(1, 4, width_ratios=(1, 1, 1, 1.9))
    layer = dctps.DpSLinear(SIDE, SIDE, density=0.03, seed=1)
    with torch.no_grad():
        layer.values.copy_(torch.linspace(-1, 1, layer.nnz).sign())
        whole = layer.to_dense()
        offset = layer.offset.to_dense()
    matrices = {
        "W": whole,
        "= \N{GREEK SMALL LETTER ALPHA}D, never stored": offset,
        "+ S, trained": whole - offset,
    }
    for i, (title, matrix) in enumerate(matrices.items()):
        axes = figure.add_subplot(grid[0, i])
        axes.imshow(matrix.numpy(), cmap="RdBu", vmin=-0.6, vmax=0.6)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title, fontsize=9)
    curves(figure.add_subplot(grid[0, 3]))
    return figure


def curves(axes: Axes) -> None:
    """LeNet-5: each method at the best of its rates and starts."""
    beside = {"dctps": (-6, 3), "synflow": (-5, -2), "random-epl": (6, -9)}  # where no curve passes
    for name, place in beside.items():
        densities, means, spreads = zip(*points(name), strict=True)
        look: dict[str, Any] = STYLES[name].of_line() | {"markersize": 4}
        axes.errorbar([100 * d for d in densities], means, spreads, capsize=2, **look)
        axes.annotate(
            STYLES[name].label,
            (0.5, means[densities.index(0.005)]),
            xytext=place,
            textcoords="offset points",
            color=STYLES[name].color,
            fontsize=8,
            ha="right" if place[0] < 0 else "left",
        )
    axes.axhline(10, color=BLACK, linewidth=0.8, linestyle=":")
    axes.text(5, 11, "chance", fontsize=8, ha="right")
    axes.set_xscale("log")
    axes.set_xticks([0.1, 0.5, 2, 5], ["0.1%", "0.5%", "2%", "5%"])
    axes.minorticks_off()
    dress(axes, title="LeNet-5, CIFAR-10: accuracy in %, n = 3", x="weights that train", y="")


def points(method: str) -> list[tuple[float, float, float]]:
    """Density, mean and deviation in percent of the best setting, where it has three seeds."""
    found = []
    for rows in reversed(worth.best(worth.read("lenet", method=method))):
        seeds = [100 * float(row["test_accuracy"]) for row in rows]
        if worth.density(rows[0]) > 0 and len(seeds) > 2:
            found.append((worth.density(rows[0]), mean(seeds), stdev(seeds)))
    return found
