"""docs/performance.md and its plots, from what `dctps bench` wrote to benchmarks/results/bench.json.

Called by `benchmarks/tables.py`; the plots need matplotlib (extra `figures`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asked
from markdown_tables import table

from dctps.analysis.style import SMALL, dress, image, key, new_figure, style
from dctps.benchmarking.record import read_runs
from dctps.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cell = dict[str, Any]

PART_TITLES = {
    "linear": "Linear layers",
    "slope": "Width at a fixed number of nonzeros in a row",
    "density": "Time against density",
    "transform": "The transform",
    "conv": "Convolutions",
    "network": "Whole networks",
    "latency": "One image",
    "layers": "Never slower",
    "memory": "Memory",
}


def read_cells(path: Path) -> tuple[dict[str, list[Cell]], list[dict[str, Any]]]:
    """All cells by part, and the runs. `slope` and `density` are linear runs of their own."""
    runs = read_runs(path)
    cells: dict[str, list[Cell]] = {}
    for run in runs:
        part = run["part"]
        if "--nnz-per-row" in run["command"]:
            part = "slope"
        elif part == "linear" and "--backends" not in run["command"]:
            part = "density"
        run["section"] = part
        cells.setdefault(part, []).extend(run["cells"])
    return cells, runs


def median(cell: Cell, name: str) -> float:
    return float(cell["candidates"][name]["median_ms"])


def milliseconds(taken: float) -> str:
    return f"{taken:.3g}" if taken < 100 else f"{taken:,.0f}"


def ratio(cell: Cell, name: str) -> str:
    base = next(iter(cell["candidates"]))
    if name not in cell["candidates"]:
        return "-"
    both = (
        cell["candidates"][base][f"{q}_ms"] / cell["candidates"][name][f"{q}_ms"] for q in ("median", "p10")
    )
    return " / ".join(f"{r:.2f}" if r < 10 else f"{r:.1f}" for r in both)


def speedups(cells: list[Cell], fields: dict[str, str]) -> str:
    """A row for each cell: what it is, the time of its first candidate, how much faster the others are."""
    names = list(dict.fromkeys(name for cell in cells for name in cell["candidates"]))
    base = names[0]
    rows = [
        [
            *(shown(field, cell[field]) for field in fields),
            milliseconds(median(cell, base)),
            *(ratio(cell, name) for name in names[1:]),
        ]
        for cell in cells
    ]
    return table([*fields.values(), f"{base}, ms", *names[1:]], rows)


def shown(field: str, value: Any) -> str:
    return f"{100 * value:.3g}%" if field == "density" else str(value)


def convolutions(cells: list[Cell]) -> str:
    for cell in cells:
        cell["shape"] = f"{cell['in']} to {cell['out']}, {cell['kernel']} x {cell['kernel']}"
        cell["images"] = f"{cell['batch']} of {cell['side']} x {cell['side']}"
    fields = {"shape": "channels, kernel", "images": "images", "layout": "layout", "density": "density"}
    return speedups(cells, fields)


def slopes(cells: list[Cell]) -> str:
    """Least squares of log time over log n."""
    names = [name for name in cells[0]["candidates"] if name != "SparseProp"]
    logs = [math.log(cell["n"]) for cell in cells]
    middle = sum(logs) / len(logs)
    rows = []
    for name in names:
        times = [math.log(median(cell, name)) for cell in cells]
        slope = sum((x - middle) * t for x, t in zip(logs, times, strict=True))
        slope /= sum((x - middle) ** 2 for x in logs)
        rows.append([name, *(milliseconds(median(cell, name)) for cell in cells), f"{slope:.2f}"])
    return table(["", *(f"n = {cell['n']}, ms" for cell in cells), "slope"], rows)


def flattening(cells: list[Cell]) -> str:
    """For each width and offset the density at which a layer takes 1.5 times its least, by interpolation."""
    rows = []
    for n in sorted({cell["n"] for cell in cells}):
        line = sorted((cell for cell in cells if cell["n"] == n), key=lambda cell: cell["density"])
        found = []
        for name in ("dct", "sdct"):
            points = [(cell["density"], median(cell, name)) for cell in line]
            limit = 1.5 * min(time for _, time in points)
            above = next((i for i, (_, time) in enumerate(points) if time > limit and i), None)
            if above is None:
                found.append(f"above {points[-1][0]:.1%}")
                continue
            (p0, t0), (p1, t1) = points[above - 1], points[above]
            share = (math.log(limit) - math.log(t0)) / (math.log(t1) - math.log(t0))
            found.append(f"{100 * math.exp(math.log(p0) + share * (math.log(p1) - math.log(p0))):.2g}%")
        rows.append([str(n), *found, f"{100 * math.log2(n) / n:.2g}%"])
    return table(["n", "dct", "sdct", "log2(n) / n"], rows)


def slowest(cells: list[Cell]) -> str:
    """For each network how many layers and densities there are, how many fall short, and those."""
    rows, short = [], []
    for model in dict.fromkeys(cell["model"] for cell in cells):
        mine = [cell for cell in cells if cell["model"] == model]
        ratios = [
            (median(cell, "dense") / median(cell, name), cell, name)
            for cell in mine
            for name in cell["candidates"]
            if name != "dense"
        ]
        below = [entry for entry in ratios if entry[0] < 0.95]
        least = min(ratios, key=lambda entry: entry[0])
        rows.append([model, str(len(mine)), str(len(ratios)), str(len(below)), f"{least[0]:.2f}"])
        short += below
    text = table(["network", "layers", "of them, offsets and densities", "below 0.95", "least"], rows)
    if short:
        entries = [
            [
                cell["model"],
                cell["layer"],
                " x ".join(map(str, cell["weight"])),
                " x ".join(map(str, cell["input"])),
                name,
                f"{found:.2f}",
            ]
            for found, cell, name in sorted(short, key=lambda entry: entry[0])
        ]
        heads = ["network", "layer", "weight", "input", "offset and density", "of dense's speed"]
        text += f"\n\nThose below 0.95:\n\n{table(heads, entries)}"
    return text


def memory(cells: list[Cell]) -> str:
    rows = [
        [
            cell["model"],
            str(cell["batch"]),
            cell["offset"],
            *(f"{cell[name] / 1e6:.1f}" for name in ("activations", "dense_state", "peak_above_activations")),
            f"{cell['share']:.1%}",
            f"{cell['scratch'] / 1e6:.2f}",
            f"{cell['tables'] / 1e6:.2f}",
        ]
        for cell in cells
    ]
    heads = ["network", "batch", "offset", "activations, MB", "dense state, MB", "peak above activations, MB"]
    return table([*heads, "share", "of it scratch, MB", "shape tables, MB"], rows)


def commands(runs: list[dict[str, Any]], section: str) -> str:
    mine = [run for run in runs if run["section"] == section]
    made = "\n".join(run["command"] for run in mine)
    commits = ", ".join(dict.fromkeys(f"`{run['commit'][:10]}`" for run in mine))
    return f"```console\n{made}\n```\n\ncommit {commits}"


PROSE = {
    "linear": "n inputs and outputs, forward and backward. `dct` and `sdct` are the layers as "
    "anyone gets them, `transform` forces torch operations: `zero transform` is torch's CSR product, with a "
    "backward of its own. SparseProp has S alone.",
    "parts": "`layer` is the step as above, `native` its two native calls alone; the rest is Python's "
    "autograd function, and caches that y fills in between. `zero` has S and no D, as SparseProp has. Up to "
    "n = 1024 that rest, and D, keep a layer below 2.5 times SparseProp; at n = 4096 and 1% or more S itself "
    "does, which reads a line from the second-level cache for each nonzero and tile.",
    "slope": "Forward and backward, and the slope of the least-squares line through the logarithms.",
    "density": "Forward and backward. Work on S and on D are alike where a row has about log2(n) nonzeros. "
    "The table has the densities at which a layer takes 1.5 times as long as at the lowest.\n\n"
    "![Time against density](figures/density.png)",
    "transform": "Rows through the DCT-II, at the native kernel's entry (`native`) and in torch operations. "
    "torch's real FFT of the same length does less: no DCT comes out of it.",
    "conv": "Forward and backward, beside `nn.Conv2d` in the same layout.",
    "network": "CIFAR's images, channels last; the dense network's filters too. A training step is forward, "
    "backward and fused Adam.\n\n![Whole networks](figures/networks.png)",
    "fused": "`sdct` at 0.1%, CIFAR's images, channels last. After `fuse_` each batch normalisation takes "
    "the addition and the activation behind it along in one pass over memory; beside it the same "
    "network after `unfuse_`. Processor time, and how many times less it is: by the median / by the least of "
    "all rounds.",
    "latency": "Forward pass of a single image.",
    "layers": "Every different layer whose dense forward and backward takes over a millisecond, for images "
    "in channels-last order, at each density and offset.",
    "memory": "The peak of a training step's resident memory above the level before the network was built, "
    "less the activations, as a share of dense parameters, gradients and Adam's state. Each in a process of "
    "its own, native scratch and shape tables included.",
}

MAKE = {
    "linear": lambda cells: speedups(cells, {"n": "n", "density": "density"}),
    "slope": slopes,
    "density": flattening,
    "transform": lambda cells: speedups(cells, {"n": "n"}),
    "conv": convolutions,
    "network": lambda cells: speedups(
        cells, {"model": "network", "batch": "batch", "density": "density", "what": "what"}
    ),
    "latency": lambda cells: speedups(cells, {"model": "network", "density": "density"}),
    "layers": slowest,
    "memory": memory,
}


def linear_parts(result: dict[str, Any]) -> str:
    """Milliseconds of a linear layer's step and of its native calls, and both beside SparseProp."""
    names = ("SparseProp", "dct layer", "dct native", "zero native")
    rows = []
    for cell in result["cells"]:
        peer = median(cell, "SparseProp")
        ratios = [f"{peer / median(cell, name):.1f}" for name in names[1:]]
        times = [milliseconds(median(cell, name)) for name in names]
        rows.append([str(cell["n"]), shown("density", cell["density"]), *times, *ratios])
    heads = [f"{name}, ms" for name in names] + [f"SparseProp / {name}" for name in names[1:]]
    return (
        f"{PROSE['parts']}\n\n{table(['n', 'density', *heads], rows)}\n\n"
        f"```console\n{result['command']}\n```\n\ncommit `{result['commit'][:10]}`"
    )


def fused_norms(result: dict[str, Any]) -> str:
    """Processor time of steps with torch's norms, and how much less it is with fused ones."""
    rows = []
    base, *others = result["cells"][0]["median_ms"]
    for cell in result["cells"]:
        times = cell["median_ms"]
        gains = [
            " / ".join(f"{cell[q][base] / cell[q][name]:.2f}" for q in ("median_ms", "least_ms"))
            if name in times
            else "-"
            for name in others
        ]
        rows.append([cell["model"], str(cell["batch"]), cell["what"], milliseconds(times[base]), *gains])
    heads = ["network", "batch", "what", f"{base}, ms", *others]
    made = f"{result['hardware']}, {result['threads']} thread, commit `{result['commit'][:10]}`"
    return f"{PROSE['fused']}\n\n{table(heads, rows)}\n\n```console\n{result['command']}\n```\n\n{made}"


def page(path: Path) -> str:
    """The text of docs/performance.md."""
    cells, runs = read_cells(path)
    parts = json.loads((path.parent / "linear_parts.json").read_text())
    fused = json.loads((path.parent / "fused.json").read_text())
    last = runs[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    settings = ", ".join(f"{name}={value}" for name, value in last["settings"].items()) or "none"
    loads = [run["load"] for run in runs]
    load = f" (load average before a run {min(loads):.1f} to {max(loads):.1f})"
    text = f"""# Performance

On the CPU, float32, beside dense PyTorch in the same run. {last["hardware"]}, {last["threads"]} threads,
kernels `{last["kernels"]}`; {versions}; environment: {settings}.

Candidates take turns, each with an untimed call before the timed one. Columns without a unit say how much
faster than the first a candidate is: by its median / by its 10th percentile, over five rounds or more. Where
the two differ much, other work ran on the machine at the same time{load}. `benchmarks/tables.py` wrote
this page from `benchmarks/results/bench.json`; the commands below measure it again.
"""
    text += f"\n## Asked and reached\n\n{asked.tables(cells)}\n"
    for section, title in PART_TITLES.items():
        if section in cells:
            body = MAKE[section](cells[section])
            text += f"\n## {title}\n\n{PROSE[section]}\n\n{body}\n\n{commands(runs, section)}\n"
        if section == "linear":
            text += f"\n## Parts of a linear layer's step\n\n{linear_parts(parts)}\n"
        if section == "network":
            text += f"\n## Norms, additions and activations\n\n{fused_norms(fused)}\n"
    return text


def short_table(path: Path) -> str:
    """What README says of speed."""
    cells, _ = read_cells(path)
    rows = []
    for cell in cells.get("linear", []):
        if cell["n"] in (1024, 4096):
            rows.append([f"linear {cell['n']} x {cell['n']}, batch {cell['batch']}", cell])
    rows += [
        [
            f"3 x 3, {cell['in']} channels, {cell['batch']} images of {cell['side']} x {cell['side']}",
            cell,
        ]
        for cell in cells.get("conv", [])
        if cell["layout"] == "channels last" and cell["in"] in (64, 512) and cell["density"] == 0.001
    ]
    rows += [
        [f"{cell['model']}, training step, batch {cell['batch']}", cell]
        for cell in cells.get("network", [])
        if cell["what"] == "training step"
    ]
    lines = []
    for name, cell in rows:
        base = next(iter(cell["candidates"]))
        times = [f"{median(cell, base) / median(cell, offset):.1f}x" for offset in ("dct", "sdct")]
        lines.append(
            [name, shown("density", cell["density"]), f"{milliseconds(median(cell, base))} ms", *times]
        )
    return table(["forward and backward", "density", "dense", "`dct`", "`sdct`"], lines)


def plots(path: Path, folder: Path) -> None:
    """density.png and networks.png."""
    cells, _ = read_cells(path)
    if "density" in cells:
        write_atomically(folder / "density.png", image(draw_density(cells["density"]), "png"))
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
