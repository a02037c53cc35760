"""The constants of the rule that picks paths, fitted to measurements on this machine; and how good it is.

    python benchmarks/fit_rule.py measure --cells 400       # times of every path of drawn layers
    python benchmarks/fit_rule.py fit --name intel-avx512   # constants from them, into product/machines/
    python benchmarks/fit_rule.py check --cells 240         # the regret on other layers

A cell is a drawn layer, batch, density, layout and number of threads. Every path that can take it is timed,
forward alone and forward with backward, in turn with the others. A path's constants minimise the squared
errors of the logarithm of its estimate; where it takes twice the time of the fastest path, only too low an
estimate is an error. `check` draws cells with another seed, so that none of them fitted the constants. Regret
is the time of the path that the rule picks over that of the fastest.

`--statistic least --clock thread` measures on a machine that others use: the least time of each path, in the
thread's own CPU time, on one thread. Another instruction set is measured under DCTPS_KERNELS, and gets cells
of its own in the same files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares

from dctps.allocator import keep_freed_memory
from dctps.benchmarking.record import processor, provenance
from dctps.files import write_atomically
from dctps.kernels import variant
from dctps.offsets import Offset, build_offset
from dctps.product import function
from dctps.product.geometry import ROWS, Geometry, conv_geometry
from dctps.product.machine import PROFILES, Machine, current_machine, use_machine
from dctps.product.path import Call
from dctps.product.paths import KEPT, PATHS
from dctps.product.weight import Weight

RESULTS = Path(__file__).parent / "results"
CELLS, REGRET = RESULTS / "rule_cells.json", RESULTS / "regret.json"
MODES = ("training", "inference")
ROUNDS = 9
# A path of so many times the best time decides nothing, if its estimate is not too low.
SLOW, MARGIN = 2.0, 0.3
Array = NDArray[np.float64]
Cell = dict[str, Any]
Costs = dict[str, dict[str, dict[str, float]]]


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


def measured(cell: Cell, how: argparse.Namespace) -> Cell:
    """A cell with the seconds of each path and mode; the three times slower are timed twice."""
    if how.clock == "thread":
        cell = {**cell, "threads": 1}
    torch.set_num_threads(cell["threads"])
    cell = {**cell, "variant": variant()}
    clock = time.thread_time if how.clock == "thread" else time.perf_counter
    real, times, rounds = function.choose, {}, 0
    begun = time.perf_counter()
    try:
        steps = list(steps_of(cell, clock))
        while rounds < ROUNDS or time.perf_counter() - begun < how.seconds:
            for path, mode, step in steps:
                step()
                times.setdefault((path, mode), []).append(step())
            rounds += 1
            if rounds == 2:
                least = {mode: min(min(t) for (_, m), t in times.items() if m == mode) for mode in MODES}
                steps = [s for s in steps if min(times[s[0], s[1]]) < 3 * least[s[1]]]
    finally:
        function.choose = real
    statistic = min if how.statistic == "least" else median
    for (path, mode), taken in times.items():
        cell.setdefault("seconds", {}).setdefault(path, {})[mode] = float(f"{statistic(taken):.4g}")
    return cell


def measure(path: Path, seed: int, how: argparse.Namespace) -> list[Cell]:
    """Time drawn cells, in a file that keeps those of other variants and, for fits, of other seeds."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    command = (
        f"python benchmarks/fit_rule.py {how.action} --cells {how.cells} --clock {how.clock} "
        f"--statistic {how.statistic} --seed {seed}"
    )
    run = {
        **provenance(command, 0),
        "statistic": how.statistic,
        "profile": current_machine().name,
        "seed": seed,
        "cells": [],
    }
    seeds = {seed} if path == CELLS else {old.get("seed", 0) for old in runs}
    runs = [old for old in runs if old["kernels"] != run["kernels"] or old.get("seed", 0) not in seeds] + [
        run
    ]
    generator = random.Random(seed)
    for i in range(how.cells):
        run["cells"].append(measured(draw(generator), how))
        if i % 10 == 9 or i == how.cells - 1:
            write_atomically(path, (json.dumps({"runs": runs}) + "\n").encode())
            print(f"{i + 1} of {how.cells}", flush=True)
    return list(run["cells"])


def fit(cells: list[Cell]) -> Costs:
    """Constants by path and mode."""
    costs: Costs = {}
    for path, mode in itertools.product(PATHS, MODES):
        mine = [cell for cell in cells if path.name in cell["seconds"]]
        if mine:
            terms = [path.terms(call_of(cell, mode == "training")) for cell in mine]
            times = [cell["seconds"][path.name][mode] * 1e9 for cell in mine]
            best = [min(by[mode] for by in cell["seconds"].values()) * 1e9 for cell in mine]
            costs.setdefault(path.name, {})[mode] = constants_of(terms, np.array(times), np.array(best))
    return costs


def constants_of(terms: list[Mapping[str, float]], times: Array, best: Array) -> dict[str, float]:
    """Positive constants for terms, by least squares in the logarithm of the time; outliers count less."""
    names = sorted({name for term in terms for name in term if term[name]})
    amounts = np.array([[term.get(name, 0.0) for name in names] for term in terms])
    seen = [times[amounts[:, j] > 0] / amounts[amounts[:, j] > 0, j] for j in range(len(names))]
    typical = np.log([np.median(ratios) for ratios in seen])
    slow = times > SLOW * best

    def errors(logarithms: Array) -> Array:
        found = np.log(amounts @ np.exp(logarithms)) - np.log(times)
        found = np.where(slow, np.minimum(0, found + MARGIN), found)
        return np.concatenate([found, 0.003 * (logarithms - typical)])  # what no cell decides stays typical

    start = typical - math.log(len(names))
    bounds = typical - 14, typical + 4
    solved = least_squares(errors, start, bounds=bounds, loss="soft_l1", f_scale=1.0, max_nfev=500)
    return {name: float(f"{c:.3g}") for name, c in zip(names, np.exp(solved.x), strict=True)}


def regrets(cells: list[Cell], machine: Machine) -> list[dict[str, Any]]:
    """The regret of every cell and mode, the worst first."""
    found = []
    for cell, mode in itertools.product(cells, MODES):
        call = call_of(cell, mode == "training")
        # W is kept only where its memory does not count: a limit that the fastest path has to keep too.
        seconds = {
            path.name: cell["seconds"][path.name][mode]
            for path in PATHS
            if path.name in cell["seconds"] and (path is not KEPT or path.wins(call))
        }
        possible = [path for path in PATHS if path.name in seconds and path.wins(call)]
        costs = {path.name: path.cost(call, machine) for path in possible}
        chosen, fastest = min(costs, key=costs.__getitem__), min(seconds, key=seconds.__getitem__)
        regret = seconds[chosen] / seconds[fastest]
        found.append({"regret": regret, "mode": mode, "chosen": chosen, "fastest": fastest, "cell": cell})
    return sorted(found, key=lambda row: -row["regret"])


def summary(found: list[dict[str, Any]]) -> dict[str, float]:
    """Number of choices, and the median, 95th percentile and worst of their regrets."""
    numbers = [row["regret"] for row in found]
    return {
        "choices": len(numbers),
        "median": round(median(numbers), 3),
        "p95": round(quantiles(numbers, n=20)[-1], 3),
        "worst": round(max(numbers), 3),
    }


def cells_in(path: Path) -> list[Cell]:
    """The cells of this variant in a file."""
    runs = json.loads(path.read_text())["runs"]
    return [cell for run in runs if run["kernels"] == variant() for cell in run["cells"]]


def show(found: list[dict[str, Any]]) -> None:
    """Print the regret for each kind of layer and mode, and the worst choices."""
    for images, mode in itertools.product((False, True), MODES):
        part = [row for row in found if row["mode"] == mode and ("side" in row["cell"]) == images]
        print("convolution" if images else "linear", mode, summary(part))
    print("all", summary(found))
    for row in found[:10]:
        cell = {name: value for name, value in row["cell"].items() if name != "seconds"}
        print(f"{row['regret']:.2f} {row['mode']}: {row['chosen']} for {row['fastest']}, {cell}")


def main() -> None:
    """Measure, fit or check."""
    parser = argparse.ArgumentParser(description="Fit and check the rule that picks paths.")
    parser.add_argument("action", choices=("measure", "fit", "check"))
    parser.add_argument("--cells", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each cell")
    parser.add_argument("--clock", choices=("wall", "thread"), default="wall")
    parser.add_argument("--statistic", choices=("median", "least"), default="median")
    parser.add_argument("--seed", type=int, help="of the cells (default: 0 for measure, 1 for check)")
    parser.add_argument("--name", help="of the profile to write")
    how = parser.parse_args()
    keep_freed_memory()  # as where networks are trained
    if how.action == "measure":
        measure(CELLS, 0 if how.seed is None else how.seed, how)
    elif how.action == "check":
        measure(REGRET, 1 if how.seed is None else how.seed, how)
        show(regrets(cells_in(REGRET), current_machine()))
    else:
        cells = cells_in(CELLS)
        command = f"python benchmarks/fit_rule.py fit --name {how.name}"
        profile = {"fitted_on": f"{processor()}, {variant()}", "command": command, "costs": fit(cells)}
        write_atomically(PROFILES / f"{how.name}.json", (json.dumps(profile, indent=1) + "\n").encode())
        use_machine(how.name)
        show(regrets(cells, current_machine()))


if __name__ == "__main__":
    main()
