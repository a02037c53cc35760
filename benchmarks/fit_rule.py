"""The constants of the rule that picks paths, fitted to measurements on this machine; and how good it is.

    python benchmarks/fit_rule.py measure --cells 400      # times of every path, into results/rule_cells.json
    python benchmarks/fit_rule.py fit --name intel-avx512   # constants from them, into product/machines/
    python benchmarks/fit_rule.py check --cells 240         # times of other cells, into results/regret.json

A cell is a drawn layer, batch, density, layout and number of threads. Every path that can take it is timed,
forward alone and forward with backward, in turn with the others. The constants of a path are the nonnegative
least squares fit of its times to its terms (`Path.terms`), in relative errors. `check` draws cells with
another seed, so that none of them fitted the constants; regret is the time of the path that the rule picks
over that of the fastest. Another instruction set is measured with DCTPS_KERNELS, into cells of its own.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from dctps.benchmarking.record import provenance
from dctps.files import write_atomically
from dctps.kernels import variant
from dctps.offsets import Offset, build_offset
from dctps.product import function
from dctps.product.geometry import ROWS, Geometry, conv_geometry
from dctps.product.path import Call
from dctps.product.paths import PATHS
from dctps.product.weight import Weight

RESULTS = Path(__file__).parent / "results"
CELLS, REGRET = RESULTS / "rule_cells.json", RESULTS / "regret.json"
MODES = ("training", "inference")
Cell = dict[str, Any]


def draw(generator: random.Random) -> Cell:
    """A layer and its input, of at most 2^30 multiply-adds."""
    while True:
        cell: Cell = {
            "threads": generator.choice((1, 2)),
            "batch": round(2 ** generator.uniform(0, 8)),
            "density": 10 ** generator.uniform(-4, math.log10(0.5)),
        }
        if generator.random() < 0.45:
            sides = [round(2 ** generator.uniform(3, 11)) for _ in range(2)]
            sides = [
                generator.choice((side, 1 << side.bit_length() - 1, side // 12 * 12 or 12)) for side in sides
            ]
            cell |= {
                "offset": generator.choice(("dct", "sdct", "hadamard", "zero")),
                "shape": sides,
                "groups": 1,
            }
            macs = math.prod(sides) * cell["batch"]
        else:
            side = generator.choice((1, 2, 4, 7, 8, 14, 16, 28, 32))
            kernel = generator.choice((1, 3, 3, 3, 5))
            inputs = generator.choice((3, 16, 24, 32, 64, 96, 128, 256, 512))
            m = generator.choice((16, 32, 64, 128, 256, 512))
            depthwise = inputs > 3 and generator.random() < 0.2
            shape = [inputs, 1, kernel, kernel] if depthwise else [m, inputs, kernel, kernel]
            cell |= {
                "offset": generator.choice(("dct", "sdct", "zero")),
                "shape": shape,
                "groups": inputs if depthwise else 1,
                "side": side,
                "stride": generator.choice((1, 1, 2)),
                "last": generator.random() < 0.6,
            }
            macs = math.prod(shape) * cell["batch"] * (-(-side // cell["stride"])) ** 2
            numbers = cell["batch"] * side**2 * (inputs + shape[0] / cell["stride"] ** 2)
            if numbers > 2**23:
                continue
        if macs <= 2**30:
            return cell


def parts_of(cell: Cell) -> tuple[Offset, Geometry, torch.Tensor, Weight, torch.Tensor]:
    """D, geometry, x, W's parts and b of a cell."""
    shape, groups = tuple(cell["shape"]), cell["groups"]
    offset = build_offset(cell["offset"], shape, groups=groups, seed=1)
    size = offset.out_features * offset.in_features
    generator = torch.Generator().manual_seed(size)
    support = torch.randperm(size, generator=generator)[: max(1, round(cell["density"] * size))].sort().values
    values = torch.randn(len(support), generator=generator).requires_grad_()
    alpha = None if cell["offset"] == "zero" else torch.ones(1).requires_grad_()
    bias, geometry = torch.zeros(shape[0]).requires_grad_(), ROWS
    x = torch.randn(cell["batch"], shape[1], generator=generator)
    if "side" in cell:
        pair, pad, side = (cell["stride"],) * 2, shape[2] // 2, cell["side"]
        geometry = conv_geometry(shape, pair, (pad, pad), (1, 1), groups)
        layout = torch.channels_last if cell["last"] else torch.contiguous_format
        x = torch.randn(cell["batch"], shape[1] * groups, side, side).contiguous(memory_format=layout)
    return offset, geometry, x.requires_grad_(), Weight(values, alpha, support, offset), bias


def call_of(cell: Cell, training: bool) -> Call:
    """A cell as the rule sees it, without its numbers."""
    offset = build_offset(cell["offset"], tuple(cell["shape"]), groups=cell["groups"])
    nnz = max(1, round(cell["density"] * offset.out_features * offset.in_features))
    images, last = "side" in cell, cell.get("last", False)
    shape: tuple[int, ...] = (cell["batch"], cell["shape"][1] * cell["groups"])
    geometry: Geometry = ROWS
    if images:
        shape = (*shape, cell["side"], cell["side"])
        pair, pad = (cell["stride"],) * 2, cell["shape"][2] // 2
        geometry = conv_geometry(offset.shape, pair, (pad, pad), (1, 1), cell["groups"])
    ambiguous = images and (cell["side"] == 1 or shape[1] == 1)
    return Call(
        offset,
        geometry,
        shape,
        not images or last or ambiguous,
        images and last and not ambiguous,
        torch.float32,
        "cpu",
        nnz,
        cell["variant"] != "off",
        training,
        cell["threads"],
        cell["variant"],
    )


def steps_of(cell: Cell, clock: Callable[[], float]) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """(path, mode, a timed step) of every path that can take a cell."""
    _, geometry, x, weight, bias = parts_of(cell)
    leaves = [t for t in (x, weight.values, weight.alpha, bias) if t is not None]
    g = torch.randn_like(function.product(x, weight, geometry, "auto", bias).detach())

    def by(path: Any) -> None:
        function.choose = lambda *_: (path, True)

    for path in PATHS:
        if path.refusal(call_of(cell, True)):
            continue

        def train(path: Any = path) -> float:
            by(path)
            begun = clock()
            torch.autograd.grad(function.product(x, weight, geometry, "auto", bias), leaves, g)
            return clock() - begun

        def infer(path: Any = path) -> float:
            by(path)
            with torch.no_grad():
                begun = clock()
                function.product(x, weight, geometry, "auto", bias)
                return clock() - begun

        yield path.name, "training", train
        yield path.name, "inference", infer


def measured(cell: Cell, seconds: float, clock: Callable[[], float]) -> Cell:
    """A cell with the median seconds of each path and mode; the hopeless are timed twice only."""
    torch.set_num_threads(cell["threads"])
    cell = {**cell, "variant": variant()}
    real = function.choose
    times: dict[tuple[str, str], list[float]] = {}
    try:
        steps = list(steps_of(cell, clock))
        begun, rounds = time.perf_counter(), 0
        while rounds < 7 or time.perf_counter() - begun < seconds:
            for path, mode, step in steps:
                step()
                times.setdefault((path, mode), []).append(step())
            rounds += 1
            if rounds == 2:
                least = {mode: min(min(t) for (_, m), t in times.items() if m == mode) for mode in MODES}
                steps = [s for s in steps if min(times[s[0], s[1]]) < 3 * least[s[1]]]
            if rounds >= 7 and time.perf_counter() - begun > 4 * seconds:
                break
    finally:
        function.choose = real
    for (path, mode), taken in times.items():
        # The lower quartile: what else the machine does only ever adds.
        typical = quantiles(taken, n=4)[0] if len(taken) > 2 else min(taken)
        cell.setdefault("seconds", {}).setdefault(path, {})[mode] = typical
    return cell


def measure(path: Path, count: int, seed: int, seconds: float, clock: Callable[[], float]) -> None:
    """Time `count` drawn cells and put them into a file, which keeps the cells of other variants."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    run = {**provenance("python benchmarks/fit_rule.py", 0), "seed": seed, "cells": []}
    runs = [old for old in runs if (old["kernels"], old["seed"]) != (run["kernels"], seed)] + [run]
    generator = random.Random(seed)
    for i in range(count):
        run["cells"].append(measured(draw(generator), seconds, clock))
        if i % 10 == 9 or i == count - 1:
            write_atomically(path, (json.dumps({"runs": runs}) + "\n").encode())
            print(f"{i + 1} of {count}", flush=True)


def fit(cells: list[Cell]) -> dict[str, dict[str, dict[str, float]]]:
    """Constants by path and mode: nonnegative least squares in relative errors."""
    costs: dict[str, dict[str, dict[str, float]]] = {}
    for path in PATHS:
        for mode in MODES:
            mine = [cell for cell in cells if path.name in cell["seconds"]]
            terms = [path.terms(call_of(cell, mode == "training")) for cell in mine]
            names = sorted({name for term in terms for name in term})
            if not mine:
                continue
            times = np.array([cell["seconds"][path.name][mode] * 1e9 for cell in mine])
            # What is far slower than the best decides nothing: it counts less.
            best = np.array([min(by[mode] for by in cell["seconds"].values()) * 1e9 for cell in mine])
            weights = np.minimum(1, 1.5 * best / times)
            matrix = np.array([[term.get(name, 0.0) for name in names] for term in terms])
            constants, _ = nnls(matrix * (weights / times)[:, None], weights, maxiter=10_000)
            found = dict(zip(names, (float(f"{c:.4g}") for c in constants), strict=True))
            costs.setdefault(path.name, {})[mode] = {name: c for name, c in found.items() if c}
    return costs


def regrets(cells: list[Cell], costs: dict[str, Any]) -> list[tuple[float, str, str, str, Cell]]:
    """(regret, mode, chosen, fastest, cell) of every cell and mode, the worst first."""
    found = []
    for cell in cells:
        for mode in MODES:
            call = call_of(cell, mode == "training")
            seconds = {
                path.name: cell["seconds"][path.name][mode]
                for path in PATHS
                if path.name in cell["seconds"] and path.wins(call)
            }
            estimates = {
                path.name: sum(costs[path.name][mode].get(k, 0) * v for k, v in path.terms(call).items())
                for path in PATHS
                if path.name in seconds and path.name in costs
            }
            chosen, fastest = min(estimates, key=estimates.__getitem__), min(seconds, key=seconds.__getitem__)
            found.append((seconds[chosen] / seconds[fastest], mode, chosen, fastest, cell))
    return sorted(found, key=lambda row: -row[0])


def summary(found: list[tuple[float, str, str, str, Cell]]) -> dict[str, float]:
    """Median, 95th percentile and worst."""
    numbers = [row[0] for row in found]
    return {
        "cells": len(found) // 2,
        "median": median(numbers),
        "p95": quantiles(numbers, n=20)[-1],
        "worst": max(numbers),
    }
