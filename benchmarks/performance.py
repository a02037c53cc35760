"""docs/performance.md, from what `dctps bench` wrote to benchmarks/results/bench-*.json.

Called by `benchmarks/tables.py`.
"""

from __future__ import annotations

import json
import math
from typing import Any

from markdown_tables import table
from measured import MACHINES, RESULTS, Cell, layer_speeds, median, milliseconds, read_cells, shown, speed

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


FAR_BELOW = 0.88


def slowest(cells: list[Cell]) -> str:
    """For each network how many layers and densities there are, how many fall short, and those."""
    rows, short = [], []
    for model in dict.fromkeys(cell["model"] for cell in cells):
        mine = [cell for cell in cells if cell["model"] == model]
        ratios = layer_speeds(mine)
        below = [entry for entry in ratios if entry[0] < 0.95]
        far = [entry for entry in below if entry[0] < FAR_BELOW]
        least = min(ratios, key=lambda entry: entry[0])
        rows.append(
            [model, str(len(mine)), str(len(ratios)), str(len(below)), str(len(far)), f"{least[0]:.2f}"]
        )
        short += far
    heads = [
        "network",
        "layers",
        "of them, offsets and densities",
        "below 0.95",
        f"below {FAR_BELOW}",
        "least",
    ]
    text = table(heads, rows)
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
        text += f"\n\nThose below {FAR_BELOW}:\n\n{table(heads, entries)}"
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
    last = mine[-1]
    load = " to ".join(f"{of(run['load'] for run in mine):.1f}" for of in (min, max))
    return (
        f"```console\n{made}\n```\n\n{last['hardware']}, {last['threads']} threads, kernels "
        f"`{last['kernels']}`, torch {last['versions']['torch']}, commit {commits}, load average before "
        f"{load}."
    )


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
    "backward and fused Adam.",
    "fused": "`sdct` at 0.1%, CIFAR's images, channels last. After `fuse_` each batch normalisation takes "
    "the addition and the activation behind it along in one pass over memory; beside it the same "
    "network after `unfuse_`. Processor time, and how many times less it is: by the median / by the least of "
    "all rounds.",
    "half": "Forward and backward, beside the dense layer in bfloat16. The kernels read and write bfloat16, "
    "and compute in float32.",
    "kept": "`dctps train`, `sweep` and `bench` keep the memory of freed tensors for the next ones. A script "
    "of your own does so after `dctps.keep_freed_memory()`. A training step at density 0.1%, in processes "
    "that do and do not, in turn.",
    "inference": "Forward passes on one thread, density 0.1%; onnxruntime runs the merged network, which has "
    "all weights.",
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
    return f"{PROSE['parts']}\n\n{table(['n', 'density', *heads], rows)}\n\n{made(result)}"


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
    return f"{PROSE['fused']}\n\n{table(heads, rows)}\n\n{made(result)}"


def halves(result: dict[str, Any]) -> str:
    """Layers in bfloat16 and float32, beside the dense one in bfloat16."""
    names = list(result["cells"][0]["candidates"])
    base = "dense bfloat16"
    rows = []
    for cell in result["cells"]:
        ratios = [f"{speed(cell, name, base):.2f}" for name in names if name != base]
        what = [cell["what"], shown("density", cell["density"]), milliseconds(median(cell, base))]
        rows.append([*what, *ratios])
    heads = ["layer", "density", f"{base}, ms", *(name for name in names if name != base)]
    amx = "has AMX" if result["amx"] else "has no AMX"
    return f"{PROSE['half']}\n\n{table(heads, rows)}\n\n{made(result)} The processor {amx}."


def kept(result: dict[str, Any]) -> str:
    """Steps in processes that give memory back and that keep it."""
    rows = [
        [
            cell["model"],
            cell["offset"],
            milliseconds(cell["returned_ms"]),
            milliseconds(cell["kept_ms"]),
            f"{cell['returned_ms'] / cell['kept_ms']:.2f}",
            *(f"{cell[name]:,.0f}" for name in ("returned_pages", "kept_pages", "returned_mb", "kept_mb")),
        ]
        for cell in result["cells"]
    ]
    heads = ["network", "layers", "returned, ms", "kept, ms", "gain", "pages a step, returned", "kept"]
    heads += ["most memory, MB, returned", "kept"]
    return f"{PROSE['kept']}\n\n{table(heads, rows)}\n\n{made(result)}"


def inference(result: dict[str, Any]) -> str:
    """One thread, few images, beside torch and onnxruntime."""
    fields = {"model": "network", "batch": "batch"}
    return f"{PROSE['inference']}\n\n{speedups(result['cells'], fields)}\n\n{made(result)}"


def made(result: dict[str, Any]) -> str:
    """Where a result of a script comes from."""
    return (
        f"```console\n{result['command']}\n```\n\n{result['hardware']}, threads: {result['threads']}, "
        f"torch {result['versions']['torch']}, commit `{result['commit'][:10]}`."
    )


def gains(machines: list[dict[str, list[Cell]]], names: list[str]) -> str:
    """The plain table: how many times dense's speed, a column of each offset and machine."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, cells in zip(names, machines, strict=True):
        for what, density, cell in headlines(cells):
            times = [f"{speed(cell, offset):.1f}" for offset in ("dct", "sdct")]
            found.setdefault((what, density), {})[name] = times
    rows = [[*key, *(t for name in names for t in by.get(name, ["-", "-"]))] for key, by in found.items()]
    heads = ["", "density", *(f"`{offset}`, {name}" for name in names for offset in ("dct", "sdct"))]
    return table(heads, rows)


def losses(machines: list[dict[str, list[Cell]]], names: list[str], scripts: dict[str, Any]) -> str:
    """Where dense is faster, a line for each kind."""
    lines = []
    for name, cells in zip(names, machines, strict=True):
        single = [(f"{cell['model']}, one image", "0.1%", cell) for cell in cells.get("latency", [])]
        slower = [
            f"{what} at {density} ({offset} {found:.2f})"
            for what, density, cell in headlines(cells) + single
            for offset in ("dct", "sdct")
            if (found := speed(cell, offset)) < 1
        ]
        ratios = [found for found, _, _ in layer_speeds(cells.get("layers", []))]
        if slower:
            lines.append(f"- {name}: " + ", ".join(slower) + ".")
        if ratios:
            below = sum(ratio < 0.95 for ratio in ratios)
            lines.append(
                f"- {name}: of {len(ratios)} layers of the four networks under both offsets, 0.01% to 50%, "
                f"{below} run at less than 0.95 of dense's speed, the slowest at {min(ratios):.2f}."
            )
    short = [
        f"{cell['what']} at {shown('density', cell['density'])} ({offset} {found:.2f})"
        for cell in scripts["half"]["cells"]
        for offset in ("dct", "sdct")
        if (found := speed(cell, f"{offset} bfloat16", "dense bfloat16")) < 1
    ]
    if short:
        lines.append("- In bfloat16, where AMX multiplies dense matrices: " + ", ".join(short) + ".")
    faster = [
        f"{cell['model']} at batch {cell['batch']} ({found:.2f})"
        for cell in scripts["inference"]["cells"]
        if (found := speed(cell, "sdct", "onnxruntime, merged")) < 1
    ]
    if faster:
        lines.append("- onnxruntime runs the merged network faster on one thread: " + ", ".join(faster) + ".")
    return "\n".join(lines)


def page() -> str:
    """The text of docs/performance.md."""
    scripts = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("linear_parts", "fused", "half", "inference", "kept_memory")
    }
    read = [read_cells(RESULTS / name) for name in MACHINES]
    names = ["AMD" if "AMD" in runs[-1]["hardware"] else "Intel" for _, runs in read]
    machines = [cells for cells, _ in read]
    hardware = "; ".join(
        f"**{name}** is {runs[-1]['hardware']}, commit `{runs[-1]['commit'][:10]}`"
        for name, (_, runs) in zip(names, read, strict=True)
    )
    text = f"""# Performance

How many times as fast as dense PyTorch, in one run on the same two cores: forward and backward in float32.
{hardware}.

![Whole networks](figures/networks.png)

{gains(machines, names)}

Dense wins where layers are small, where many weights train, and on some layers with few channels:

{losses(machines, names, scripts)}

## How it is measured

Candidates take turns, each with an untimed call before the timed one. Columns without a unit say how much
faster than the first a candidate is: by its median / by its 10th percentile, over five rounds or more. Where
the two differ much, other work ran on the machine at the same time. `benchmarks/tables.py` wrote this page
from `benchmarks/results`; the commands below measure it again, and `python benchmarks/asked.py` prints which
of the project's own targets are missed.
"""
    for section, title in PART_TITLES.items():
        parts = [(cells[section], runs) for cells, runs in read if section in cells]
        bodies = [f"{MAKE[section](own)}\n\n{commands(runs, section)}" for own, runs in parts]
        if bodies:
            text += f"\n## {title}\n\n{PROSE[section]}\n\n" + "\n\n".join(bodies) + "\n"
        if section == "linear":
            text += f"\n## Parts of a linear layer's step\n\n{linear_parts(scripts['linear_parts'])}\n"
            text += f"\n## bfloat16\n\n{halves(scripts['half'])}\n"
        if section == "network":
            text += f"\n## Norms, additions and activations\n\n{fused_norms(scripts['fused'])}\n"
            text += f"\n## Freed memory\n\n{kept(scripts['kept_memory'])}\n"
        if section == "latency":
            text += f"\n## Few images, and onnxruntime\n\n{inference(scripts['inference'])}\n"
    return text


def headlines(cells: dict[str, list[Cell]]) -> list[tuple[str, str, Cell]]:
    """What the plain tables have: what it is, its density, its cell."""
    rows = [
        (f"linear {cell['n']} x {cell['n']}, batch {cell['batch']}", cell)
        for cell in cells.get("linear", [])
        if cell["n"] in (1024, 4096)
    ]
    rows += [
        (f"3 x 3, {cell['in']} channels, {cell['batch']} images of {cell['side']} x {cell['side']}", cell)
        for cell in cells.get("conv", [])
        if cell["layout"] == "channels last" and cell["in"] in (64, 512) and cell["density"] == 0.001
    ]
    rows += [
        (f"{cell['model']}, training step, batch {cell['batch']}", cell)
        for cell in cells.get("network", [])
        if cell["what"] == "training step"
    ]
    return [(what, shown("density", cell["density"]), cell) for what, cell in rows]


def short_table() -> str:
    """What README says of speed."""
    lines = []
    for what, density, cell in headlines(read_cells(RESULTS / MACHINES[0])[0]):
        base = next(iter(cell["candidates"]))
        times = [f"{speed(cell, offset):.1f}x" for offset in ("dct", "sdct")]
        lines.append([what, density, f"{milliseconds(median(cell, base))} ms", *times])
    return table(["forward and backward", "density", "dense", "`dct`", "`sdct`"], lines)
