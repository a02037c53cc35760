"""Fill the tables of the pages, and draw their plots, from benchmarks/results/.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import adapter_tables
import figure_tables
import overview
import performance
import speed_plots
import worth
import worth_plots
from markdown_tables import table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def selection_cost(result: dict[str, Any]) -> str:
    """Time and memory to a support of whole networks."""
    heads = ("network", "criterion", "looks", "CPU seconds", "memory beside the model, MB")
    full = {"force": 60, "iter-snip": 60, "synflow": 100}
    rows = [
        (
            row["model"],
            "random, EPL" if row["criterion"] == "epl" else row["criterion"],
            "" if row["criterion"] == "epl" else str(full.get(row["criterion"], 1)),
            f"{row['cpu_seconds_of_all_looks']:.1f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
        )
        for row in result["rows"]
        if row["model"] == "resnet50"
    ]
    first = result["rows"][0]
    return (
        f"To a support of density {first['density']:.0%}, on {result['threads']} threads, with "
        f"{first['images']} images of 32 x 32 in one batch for each look (`synflow` one of ones). `force` "
        f"and `synflow` were given fewer looks, and their seconds are in proportion. Memory is the largest "
        f"resident one above that with the dense network built, activations included.\n\n"
        f"{table(heads, rows)}\n\n{source(result)}"
    )


def depthwise(result: dict[str, Any]) -> str:
    """Filters and channels of MobileNetV2's depthwise layers under each offset."""
    runs = {run["offset"]: run for run in result["runs"] if run["network"] == "mobilenetv2"}
    lines = [
        "| block | offset | filters | smallest and largest norm | mean \\|cosine\\| | condition "
        "| effective channels in | out |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for block in (1, 16):
        for offset, run in runs.items():
            layers = {row["layer"]: row for row in run["layers"]}
            bank = run["depthwise"][block]
            before, after = (layers[f"blocks.{block}.branch.{i}"]["effective_channels"] for i in (0, 3))
            norms = f"{bank['smallest_norm']:.4f}, {bank['largest_norm']:.4f}"
            lines.append(
                f"| {block} | {offset} | {bank['filters']} | {norms} | {bank['mean_abs_cosine']:.2f} "
                f"| {bank['condition']:.1f} | {before:.0f} | {after:.0f} |"
            )
    return "\n".join(lines)


def fill(page: Path, name: str, table: str) -> None:
    """Put a table between a page's marks `<!-- name -->` and `<!-- /name -->`."""
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    page.write_text(marked.sub(lambda m: f"{m[1]}{table}\n{m[2]}", page.read_text()))


def hyperplane(result: dict[str, Any]) -> str:
    """What each projection of a hyperplane costs."""
    heads = (
        "projection",
        "D",
        "d",
        "drawn once in, s",
        "held, bytes",
        "P v, ms",
        "P^T g, ms",
    )
    rows = []
    for cell in result["cells"]:
        numbers = (f"{cell[name]:,}" for name in ("size", "dimensions"))
        times = (f"{cell[name]:.2f}" for name in ("forward_ms", "backward_ms"))
        cells = (
            cell["projection"],
            *numbers,
            f"{cell['draw_seconds']:.2f}",
            f"{cell['held_bytes']:,}",
            *times,
        )
        rows.append(cells)
    return (
        "P v in the forward and P^T g in the backward pass, float32, once for each step whatever the batch: "
        f"LeNet-5 at 0.5% and 2%, and ResNet50 at 1%. LeNet-5's own dense step at batch 128 takes "
        f"{result['lenet_step_ms']:.0f} ms.\n\n{table(heads, rows)}\n\n{source(result)}"
    )


def rigl_memory(result: dict[str, Any]) -> str:
    """What RigL adds to a step of ResNet50."""
    whole = {name: f"{value / 1e6:,.1f} MB" for name, value in result["whole_network"].items()}
    return (
        f"ResNet50 at density {result['density']:.1%}, batch {result['batch']}, one thread: an ordinary step "
        f"takes {whole['peak_of_a_step']} of resident memory above that before it, one in which RigL moves "
        f"weights {whole['peak_of_an_update_step']}; its dense gradient would be {whole['dense_gradient']}. "
        f"Of its {len(result['rows'])} different layers, each by itself, RigL adds at most "
        f"{result['most_that_rigl_adds'] / 1e6:.1f} MB to one.\n\n{source(result)}"
    )


def stacked(result: dict[str, Any]) -> str:
    """What an epoch of one run costs alone and in a stack."""
    seconds = [row["epoch_seconds"] for row in result["rows"]]
    alone, together = (sum(taken[name] for taken in seconds) for name in ("alone", "stacked"))
    rows = [
        (
            f"`{row['method']}`",
            *(f"{row['epoch_seconds'][name]:.2f}" for name in ("alone", "stacked")),
            f"{row['speed_up']:.1f}x",
        )
        for row in result["rows"]
        if row["density"] == 0.005
    ]
    return (
        "LeNet-5 on CIFAR-10 at 0.5%, batch 128, one thread: seconds of one run's epoch, validation and test "
        f"included. With those at 0.05% and 5% it takes {together:.1f} s in stacks and {alone:.1f} s run by "
        f"run, {alone / together:.1f} times as long.\n\n"
        f"{table(('method', 'epoch alone, s', 'in a stack, s', 'speed-up'), rows)}\n\n{source(result)}"
    )


def source(result: dict[str, Any]) -> str:
    """What made a table, and where."""
    versions = result.get("versions", {}).get("torch") or result.get("torch")
    made = f"`{result['command']}`, {result['hardware']}, torch {versions}, commit `{result['commit'][:10]}`."
    return f"{made} {result['note']}" if result.get("note") else made


def main() -> None:
    """Fill and draw all of them."""
    moments, plane = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("moments", "hyperplane")
    )
    fill(ROOT / "docs" / "hyperplane.md", "hyperplane", hyperplane(plane))
    networks = ROOT / "docs" / "networks.md"
    fill(networks, "depthwise", f"{depthwise(moments)}\n\n{source(moments)}")
    fill(networks, "left", worth.left())
    memory = json.loads((RESULTS / "rigl_memory.json").read_text())
    fill(ROOT / "docs" / "dynamic.md", "rigl_memory", rigl_memory(memory))
    cost = json.loads((RESULTS / "selection_cost.json").read_text())
    fill(ROOT / "docs" / "selection.md", "selection_cost", selection_cost(cost))
    stacks = json.loads((RESULTS / "stacked.json").read_text())
    fill(ROOT / "docs" / "sweeps.md", "stacked", stacked(stacks))
    for name, made in worth.TABLES.items():
        fill(ROOT / "docs" / "worth.md", f"worth-{name}", made())
    for name, made_of in adapter_tables.tables().items():
        fill(ROOT / "docs" / "adapters.md", name, made_of)
    figure_tables.draw_figures(RESULTS)
    figure_tables.fill_figures(ROOT / "docs" / "figures.md", RESULTS, fill)
    for name, made in performance.tables().items():
        fill(ROOT / "docs" / "performance.md", f"speed-{name}", made)
    fill(ROOT / "README.md", "speed", performance.short_table())
    speed_plots.plots(ROOT / "docs" / "figures")
    overview.plot(ROOT / "docs" / "figures")
    worth_plots.plots(ROOT / "docs" / "figures")


if __name__ == "__main__":
    main()
