"""The tables of docs/performance.md, from what `dctps bench` and scripts wrote to benchmarks/results.

Called by `benchmarks/tables.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from markdown_tables import table
from measured import MACHINES, RESULTS, Cell, layer_speeds, median, milliseconds, read_cells, shown, speed

Machines = dict[str, dict[str, list[Cell]]]  # the name of a machine, a part of the bench, its cells
Key = tuple[str, ...]


def side_by_side(
    machines: Machines,
    part: str,
    key: Callable[[Cell], Key | None],
    heads: Iterable[str],
    others: Iterable[str] = ("dct", "sdct"),
) -> str:
    """A row for each cell that has a key: each machine's dense time in ms, how much faster others are."""
    columns = [name for name, cells in machines.items() if part in cells]
    others = list(others)
    found: dict[Key, dict[str, list[str]]] = {}
    for name in columns:
        for cell in machines[name][part]:
            if (row := key(cell)) is None:
                continue
            base = next(iter(cell["candidates"]))
            times = [f"{speed(cell, other):.1f}" if other in cell["candidates"] else "-" for other in others]
            found.setdefault(row, {})[name] = [milliseconds(median(cell, base)), *times]
    blank = ["-"] * (1 + len(others))
    rows = [[*row, *(text for name in columns for text in by.get(name, blank))] for row, by in found.items()]
    ours = [f"`{other}`" if other in ("dct", "sdct") else other for other in others]
    return table([*heads, *(head for name in columns for head in (f"{name}: dense, ms", *ours))], rows)


def convolution(cell: Cell) -> Key | None:
    if cell["layout"] != "channels last":
        return None
    shape = f"{cell['in']}, {cell['kernel']} x {cell['kernel']}"
    return shape, f"{cell['batch']} of {cell['side']} x {cell['side']}", shown("density", cell["density"])


def slopes(cells: list[Cell]) -> str:
    """Least squares of log time over log n."""
    logs = [math.log(cell["n"]) for cell in cells]
    middle = sum(logs) / len(logs)
    found = []
    for name in ("nn.Linear", "dct", "sdct"):
        times = [math.log(median(cell, name)) for cell in cells]
        slope = sum((x - middle) * t for x, t in zip(logs, times, strict=True))
        found.append(f"{slope / sum((x - middle) ** 2 for x in logs):.2f} for `{name}`")
    return f"{found[0]}, {found[1]} and {found[2]}, from n = {cells[0]['n']} to {cells[-1]['n']}"


def transforms(cells: list[Cell]) -> str:
    """Milliseconds of the real FFT, and how much faster (above 1) or slower each DCT is."""
    names = ("native", "dctps on torch", "scipy", "torch-dct")
    rows = [
        [
            str(cell["n"]),
            milliseconds(median(cell, "torch.fft.rfft")),
            *(f"{speed(cell, n):.2f}" for n in names),
        ]
        for cell in cells
        if math.log2(cell["n"]).is_integer()
    ]
    return table(["n", "torch.fft.rfft, ms", *names], rows)


def slowest(machines: Machines) -> str:
    """For each network how many layers, offsets and densities there are, and how many fall short."""
    rows = []
    for name, cells in machines.items():
        layers = cells.get("layers", [])
        for model in dict.fromkeys(cell["model"] for cell in layers):
            mine = [cell for cell in layers if cell["model"] == model]
            found = [entry[0] for entry in layer_speeds(mine)]
            short = [sum(ratio < limit for ratio in found) for limit in (0.95, 0.88)]
            rows.append([name, model, str(len(mine)), str(len(found)), *map(str, short), f"{min(found):.2f}"])
    heads = ["", "network", "layers", "cells", "below 0.95", "below 0.88", "least"]
    return table(heads, rows)


def memory(machines: Machines) -> str:
    rows = [
        [
            *(name, cell["model"], cell["offset"]),
            *(f"{cell['peak_above_activations'] / 1e6:.1f}", f"{cell['share']:.1%}"),
        ]
        for name, cells in machines.items()
        for cell in cells.get("memory", [])
        if cell["offset"] != "dense"
    ]
    return table(["", "network", "offset", "peak above activations, MB", "share"], rows)


def fused_norms(result: dict[str, Any], earlier: dict[str, Any]) -> str:
    """Processor time of steps, and how many times as long they take in NCHW, and with torch's norms.

    The latter on the machine of an `earlier` result too, which is elsewhere.
    """
    rows = []
    for cell, other in zip(result["cells"], earlier["cells"], strict=True):
        ratios = [
            times[name] / times["fused"]
            for times, name in (
                (cell["median_ms"], "fused, NCHW"),
                (cell["median_ms"], "torch's norms"),
                (other["median_ms"], "torch's norms"),
            )
        ]
        row = [cell["model"], str(cell["batch"]), cell["what"], milliseconds(cell["median_ms"]["fused"])]
        rows.append([*row, *(f"{ratio:.2f}" for ratio in ratios)])
    heads = ["network", "batch", "what", "ms", "NCHW", "torch's norms", "elsewhere"]
    return f"{table(heads, rows)}\n\n{made(result)}\n\nElsewhere: {made(earlier)}"


def halves(result: dict[str, Any]) -> str:
    """Layers in bfloat16 beside the dense one in bfloat16, at the lowest and the highest density."""
    rows = [
        [cell["what"], shown("density", cell["density"]), milliseconds(median(cell, "dense bfloat16"))]
        + [f"{speed(cell, f'{offset} bfloat16', 'dense bfloat16'):.2f}" for offset in ("dct", "sdct")]
        for cell in result["cells"]
        if cell["density"] != 0.01
    ]
    return table(["layer", "density", "dense, ms", "`dct`", "`sdct`"], rows)


def kept(result: dict[str, Any]) -> str:
    """Steps in processes that give memory back and that keep it."""
    rows = [
        [cell["model"], cell["offset"], milliseconds(cell["returned_ms"])]
        + [f"{cell['returned_ms'] / cell['kept_ms']:.2f}"]
        + [f"{cell[name]:,.0f}" for name in ("returned_mb", "kept_mb")]
        for cell in result["cells"]
    ]
    heads = ["network", "layers", "returned, ms", "kept", "most memory, MB, returned", "kept"]
    return table(heads, rows)


def inference(result: dict[str, Any]) -> str:
    """One thread, few images, beside torch and onnxruntime."""
    names = ("sdct", "onnxruntime, merged")
    rows = [
        [cell["model"], str(cell["batch"]), milliseconds(median(cell, next(iter(cell["candidates"]))))]
        + [f"{speed(cell, name):.2f}" for name in names]
        for cell in result["cells"]
    ]
    return table(["network", "batch", "dense, ms", "`sdct`", names[1]], rows)


def made(result: dict[str, Any]) -> str:
    """Where a result of a script comes from."""
    threads = "one thread" if result["threads"] == 1 else f"{result['threads']} threads"
    return f"`{result['command']}`; {result['hardware']}, {threads}, commit `{result['commit'][:10]}`."


def losses(machines: Machines, scripts: dict[str, Any]) -> str:
    """Where dense is faster, a line for each kind."""
    lines = []
    for name, cells in machines.items():
        single = [(f"{cell['model']}, one image", "0.1%", cell) for cell in cells.get("latency", [])]
        slower = [
            f"{what} at {density} (`{offset}` {found:.2f})"
            for what, density, cell in headlines(cells) + single
            for offset in ("dct", "sdct")
            if (found := speed(cell, offset)) < 1
        ]
        if slower:
            lines.append(f"- {name}: " + ", ".join(slower) + ".")
    short = [
        f"{cell['what']} at {shown('density', cell['density'])} ({found:.2f})"
        for cell in scripts["half"]["cells"]
        if (found := speed(cell, "sdct bfloat16", "dense bfloat16")) < 1
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


def gains(machines: Machines) -> str:
    """The plain table: how many times dense's speed, a column of each offset and machine."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for name, cells in machines.items():
        for what, density, cell in headlines(cells):
            times = [f"{speed(cell, offset):.1f}" for offset in ("dct", "sdct")]
            found.setdefault((what, density), {})[name] = times
    rows = [[*key, *(t for name in machines for t in by.get(name, ["-", "-"]))] for key, by in found.items()]
    heads = ["", "density", *(f"`{offset}`, {name}" for name in machines for offset in ("dct", "sdct"))]
    return table(heads, rows)


def origin(name: str, runs: list[dict[str, Any]]) -> str:
    """Of which machine, with which commits, the cells of a file are."""
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(run["commit"][:10] for run in runs))
    last = runs[-1]
    return (
        f"- **{name}**: {last['hardware']}, {last['threads']} threads, kernels `{last['kernels']}`, "
        f"torch {last['versions']['torch']}, commits {commits}."
    )


def tables() -> dict[str, str]:
    """What stands between the marks of docs/performance.md."""
    scripts = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("fused", "fused-intel", "half", "inference", "kept_memory")
    }
    read = {
        "AMD" if "AMD" in runs[-1]["hardware"] else "Intel": (cells, runs)
        for cells, runs in (read_cells(RESULTS / name) for name in MACHINES)
    }
    machines = {name: cells for name, (cells, _) in read.items()}

    def newest(part: str) -> list[Cell]:
        return next(cells[part] for cells in machines.values() if part in cells)

    return {
        "gains": gains(machines),
        "losses": losses(machines, scripts),
        "machines": "\n".join(origin(name, runs) for name, (_, runs) in read.items()),
        "linear": side_by_side(
            machines,
            "linear",
            lambda cell: (str(cell["n"]), shown("density", cell["density"])),
            ["n", "density"],
            ["dct", "sdct", "SparseProp"],
        ),
        "slope": f"With 8 nonzeros in each row, time grows with n to the power of {slopes(newest('slope'))}.",
        "half": f"{halves(scripts['half'])}\n\n{made(scripts['half'])}",
        "transform": transforms(newest("transform")),
        "conv": side_by_side(machines, "conv", convolution, ["channels, kernel", "images", "density"]),
        "network": side_by_side(
            machines,
            "network",
            lambda cell: (cell["model"], str(cell["batch"]), cell["what"]),
            ["network", "batch", "what"],
        ),
        "fused": fused_norms(scripts["fused"], scripts["fused-intel"]),
        "kept": f"{kept(scripts['kept_memory'])}\n\n{made(scripts['kept_memory'])}",
        "latency": side_by_side(machines, "latency", lambda cell: (cell["model"],), ["network"]),
        "inference": f"{inference(scripts['inference'])}\n\n{made(scripts['inference'])}",
        "layers": slowest(machines),
        "memory": memory(machines),
    }


def headlines(cells: dict[str, list[Cell]]) -> list[tuple[str, str, Cell]]:
    """What the plain tables have: what it is, its density, its cell."""
    rows = [
        (f"linear {cell['n']} x {cell['n']}, batch {cell['batch']}", cell)
        for cell in cells.get("linear", [])
        if cell["n"] == 4096
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
    """What README says of speed: five rows."""
    chosen = ("linear 4096", "3 x 3, 512", "vgg19", "resnet50", "mobilenetv2")
    lines = []
    for what, density, cell in headlines(read_cells(RESULTS / MACHINES[0])[0]):
        if density != "0.1%" or not what.startswith(chosen):
            continue
        base = next(iter(cell["candidates"]))
        times = [f"{speed(cell, offset):.1f}x" for offset in ("dct", "sdct")]
        lines.append([what, f"{milliseconds(median(cell, base))} ms", *times])
    return table(["forward and backward, density 0.1%", "dense", "`dct`", "`sdct`"], lines)
