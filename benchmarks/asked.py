"""Targets of the kernels' speed beside what was measured: prints those that are not reached.

python benchmarks/asked.py [--all] [benchmarks/results/bench-*.json ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from measured import RESULTS, Cell, layer_speeds, read_cells, speed


class Targets(NamedTuple):
    """Ratios to dense PyTorch in one run on two threads."""

    linear: dict[int, tuple[float, float, float]]  # at density 0.1%, 1% and 5%
    conv: dict[int, float]  # channels: 3 x 3, `sdct`, channels last, 0.1%
    steps: dict[str, dict[str, float]]


DENSITIES = (0.001, 0.01, 0.05)
TARGETS = {
    "Intel": Targets(
        {512: (6, 5, 3), 1024: (13, 8, 4), 2048: (24, 13, 5), 4096: (45, 18, 5.5)},
        {64: 7, 128: 10, 256: 15, 512: 28},
        {
            "vgg19": {"dct": 7.5, "sdct": 11},
            "resnet50": {"dct": 4, "sdct": 4},
            "mobilenetv2": {"dct": 2.5, "sdct": 2.5},
        },
    ),
    "AMD": Targets(
        {512: (8, 6, 4), 1024: (18, 14, 6.5), 2048: (38, 20, 7), 4096: (70, 28, 9)},
        {64: 9, 128: 14, 256: 20, 512: 30},
        {
            "vgg19": {"dct": 8, "sdct": 12},
            "resnet50": {"dct": 4.5, "sdct": 4.5},
            "mobilenetv2": {"dct": 2.5, "sdct": 2.5},
        },
    ),
}
SPARSEPROP = 2.0  # at every width and density
SINGLE = {"vgg19": 4.0, "resnet50": 2.0}  # one image, one thread, forward
NEVER_SLOWER = 0.95  # every layer, in 97 of 100 cells, and the others
LEAST, SHARE = 0.88, 0.97
MEMORY = 0.03

Row = tuple[str, str, float, float, bool]  # what, which, asked, measured, whether at most


def rows(cells: dict[str, list[Cell]], targets: Targets) -> Iterator[Row]:
    """Everything that is wanted and was measured."""
    for cell in cells.get("linear", []):
        yield from _linear(cell, targets)
    for cell in cells.get("conv", []):
        if (
            cell["layout"] == "channels last"
            and cell["density"] == DENSITIES[0]
            and cell["in"] in targets.conv
        ):
            what = f"convolution, {cell['in']} channels"
            yield what, "sdct", targets.conv[cell["in"]], speed(cell, "sdct", "nn.Conv2d"), False
    for cell in cells.get("network", []):
        for offset, wanted in targets.steps.get(cell["model"], {}).items():
            if cell["what"] == "training step":
                yield f"{cell['model']}, training step", offset, wanted, speed(cell, offset, "dense"), False
    for cell in cells.get("latency", []):
        for offset in ("dct", "sdct") if cell["model"] in SINGLE else ():
            what = f"{cell['model']}, one image"
            yield what, offset, SINGLE[cell["model"]], speed(cell, offset, "dense"), False
    yield from _layers(cells.get("layers", []))
    for cell in cells.get("memory", []):
        if cell["offset"] != "dense":
            yield f"{cell['model']}, memory", cell["offset"], MEMORY, cell["share"], True


def _linear(cell: Cell, targets: Targets) -> Iterator[Row]:
    if cell["n"] not in targets.linear or cell["density"] not in DENSITIES:
        return
    what = f"linear, n = {cell['n']}, {100 * cell['density']:.3g}%"
    wanted = targets.linear[cell["n"]][DENSITIES.index(cell["density"])]
    for offset in ("dct", "sdct"):
        yield what, offset, wanted, speed(cell, offset, "nn.Linear"), False
        if "SparseProp" in cell["candidates"]:
            yield what, f"{offset} over SparseProp", SPARSEPROP, speed(cell, offset, "SparseProp"), False


def _layers(cells: list[Cell]) -> Iterator[Row]:
    ratios = [ratio for ratio, _, _ in layer_speeds(cells)]
    if ratios:
        share = sum(ratio >= NEVER_SLOWER for ratio in ratios) / len(ratios)
        yield "layers of networks", f"share of {len(ratios)} at {NEVER_SLOWER}", SHARE, share, False
        yield "layers of networks", "the slowest", LEAST, min(ratios), False


def main() -> None:
    """Print a line for each target that a file misses, or for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="those that are reached too")
    parser.add_argument("files", nargs="*", type=Path, default=sorted(RESULTS.glob("bench-*.json")))
    chosen = parser.parse_args()
    for path in chosen.files:
        cells, runs = read_cells(path)
        hardware = runs[-1]["hardware"]
        found = list(rows(cells, TARGETS["AMD" if "AMD" in hardware else "Intel"]))
        reached = [value <= wanted if most else value >= wanted for _, _, wanted, value, most in found]
        print(f"{path.name}: {hardware}, {sum(reached)} of {len(found)} reached")
        for (what, which, wanted, value, most), good in zip(found, reached, strict=True):
            if chosen.all or not good:
                sign = "at most " if most else ""
                print(f"  {what}, {which}: {value:.3g}, wanted {sign}{wanted:.3g}")


if __name__ == "__main__":
    main()
