"""What was asked of the kernels' speed, beside what was measured; for performance.py."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from markdown_tables import table

Cell = dict[str, Any]

LINEAR = {  # times nn.Linear, forward and backward, at density 0.1%, 1%, 5%
    512: (6, 5, 3),
    1024: (12, 9, 4),
    2048: (20, 12, 5),
    4096: (35, 15, 5),
}
DENSITIES = (0.001, 0.01, 0.05)
SPARSEPROP = 2.5
TRANSFORM = {"torch.fft.rfft": 1 / 1.2, "scipy": 3.0, "torch-dct": 5.0}  # times these, 512 <= n <= 4096
CONV = {  # channels: times nn.Conv2d from channels-last tensors; NCHW two thirds of it
    64: {("dct", 0.001): 3.0, ("sdct", 0.001): 7.0, ("sdct", 0.01): 4.0},
    128: {("dct", 0.001): 6.0, ("sdct", 0.001): 10.0, ("sdct", 0.01): 5.0},
    256: {("dct", 0.001): 8.0, ("sdct", 0.001): 12.0, ("sdct", 0.01): 7.0},
    512: {("dct", 0.001): 10.0, ("sdct", 0.001): 16.0, ("sdct", 0.01): 9.0},
    1024: {(offset, density): 8.0 for offset in ("dct", "sdct") for density in (0.001, 0.01)},
}
STEPS = {"vgg19": {"dct": 5.0, "sdct": 6.0}, "resnet50": {"dct": 2.0, "sdct": 2.5}}
NEVER_SLOWER = 0.95
SLOPE = 1.2
MEMORY = 0.03

Row = tuple[str, str, float, float, bool]  # what, which, asked, measured, whether at most


def rows(cells: dict[str, list[Cell]]) -> Iterator[Row]:
    """Everything that was asked and measured."""
    for part, found in PARTS.items():
        for cell in cells.get(part, []):
            yield from found(cell)
    yield from _slopes(cells.get("slope", []))


def tables(cells: dict[str, list[Cell]]) -> str:
    """What was asked and what was reached, a line for each; of layers only those that fall short."""
    found = list(rows(cells))
    if not found:
        return ""
    reached = [measured <= asked if most else measured >= asked for _, _, asked, measured, most in found]
    shown = []
    for (what, which, asked, measured, most), good in zip(found, reached, strict=True):
        if good and asked == NEVER_SLOWER:
            continue
        sign = "at most " if most else ""
        shown.append((what, which, f"{sign}{asked:.3g}", f"{measured:.3g}", "yes" if good else "no"))
    text = (
        f"{sum(reached)} of {len(found)} are reached. Layers and networks that need only keep up with dense "
    )
    heads = ("what", "which", "asked", "measured", "reached")
    return text + "are listed where they do not.\n\n" + table(heads, shown)


def _linear(cell: Cell) -> Iterator[Row]:
    what = f"linear, n = {cell['n']}, {100 * cell['density']:.3g}%"
    if cell["n"] not in LINEAR or cell["density"] not in DENSITIES:
        return
    asked = LINEAR[cell["n"]][DENSITIES.index(cell["density"])]
    for offset in ("dct", "sdct"):
        yield what, offset, asked, _ratio(cell, "nn.Linear", offset), False
        if "SparseProp" in cell["candidates"]:
            yield what, f"{offset} over SparseProp", SPARSEPROP, _ratio(cell, "SparseProp", offset), False


def _slopes(cells: list[Cell]) -> Iterator[Row]:
    for offset in ("dct", "sdct") if cells else ():
        points = [(math.log(cell["n"]), math.log(_median(cell, offset))) for cell in cells]
        x0, t0 = (sum(values) / len(points) for values in zip(*points, strict=True))
        slope = sum((x - x0) * (t - t0) for x, t in points) / sum((x - x0) ** 2 for x, _ in points)
        yield "slope over n", offset, SLOPE, slope, True


def _conv(cell: Cell) -> Iterator[Row]:
    share = 2 / 3 if cell["layout"] == "NCHW" else 1.0
    for (offset, density), asked in CONV.get(cell["in"], {}).items():
        if density == cell["density"] and offset in cell["candidates"]:
            what = f"convolution, {cell['in']} channels, {cell['layout']}, {100 * density:.3g}%"
            yield what, offset, asked * share, _ratio(cell, "nn.Conv2d", offset), False


def _transform(cell: Cell) -> Iterator[Row]:
    for name, asked in TRANSFORM.items() if min(LINEAR) <= cell["n"] <= max(LINEAR) else ():
        if {name, "native"} <= cell["candidates"].keys():
            what = f"transform, n = {cell['n']}"
            yield what, f"over {name}", asked, _ratio(cell, name, "native"), False


def _step(cell: Cell) -> Iterator[Row]:
    for offset in ("dct", "sdct") if cell["what"] == "training step" else ():
        asked = STEPS.get(cell["model"], {}).get(offset, NEVER_SLOWER)
        yield f"{cell['model']}, training step", offset, asked, _ratio(cell, "dense", offset), False


def _layer(cell: Cell) -> Iterator[Row]:
    for name in cell["candidates"]:
        if name != "dense":
            what = f"{cell['model']} {cell['layer']}"
            yield what, name, NEVER_SLOWER, _ratio(cell, "dense", name), False


def _memory(cell: Cell) -> Iterator[Row]:
    if cell["offset"] != "dense":
        yield f"{cell['model']}, memory", cell["offset"], MEMORY, cell["share"], True


def _median(cell: Cell, name: str) -> float:
    return float(cell["candidates"][name]["median_ms"])


def _ratio(cell: Cell, base: str, name: str) -> float:
    return _median(cell, base) / _median(cell, name)


PARTS = {
    "linear": _linear,
    "transform": _transform,
    "conv": _conv,
    "network": _step,
    "layers": _layer,
    "memory": _memory,
}
