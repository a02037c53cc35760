"""Write docs/results.md, and README's table, from the JSON files in benchmarks/results.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def lenet(result: dict[str, Any]) -> str:
    """Accuracy, trained numbers and bytes for each method and density."""
    lines = [
        "| method | density | test accuracy | trained numbers | of them values | bytes in memory | on disk |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(result["rows"], key=lambda row: -(row["density"] or 1)):
        mean, std = row["test_accuracy_mean"], row["test_accuracy_std"]
        numbers = row["trainable"]
        cells = (
            row["method"],
            "all" if row["density"] is None else f"{row['density']:.1%}",
            f"{mean:.1%} ± {100 * std:.1f}",
            f"{sum(numbers.values()):,}",
            f"{numbers['values']:,}",
            f"{row['memory_bytes']:,}",
            f"{row['disk_bytes']:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def linear(result: dict[str, Any]) -> str:
    """Speed-up over nn.Linear for each size, density and candidate."""
    names = list(result["layers"][0]["candidates"])
    lines = [
        "| n | density | nn.Linear, ms | " + " | ".join(names[1:]) + " |",
        "| --- " * (len(names) + 2) + "|",
    ]
    for cell in result["layers"]:
        base = cell["candidates"]["nn.Linear"]["median_ms"]
        ratios = " | ".join(f"{base / cell['candidates'][name]['median_ms']:.1f}" for name in names[1:])
        lines.append(f"| {cell['n']} | {cell['density']:.1%} | {base:.2f} | {ratios} |")
    return "\n".join(lines)


def transforms(result: dict[str, Any]) -> str:
    """The native transform's time, and the others' as multiples of it."""
    names = list(result["transforms"][0]["candidates"])
    lines = ["| n | native, ms | " + " | ".join(names[1:]) + " |", "| --- " * (len(names) + 1) + "|"]
    for cell in result["transforms"]:
        base = cell["candidates"]["native"]["median_ms"]
        ratios = " | ".join(f"{cell['candidates'][name]['median_ms'] / base:.2f}" for name in names[1:])
        lines.append(f"| {cell['n']} | {base:.3f} | {ratios} |")
    return "\n".join(lines)


def source(result: dict[str, Any]) -> str:
    """What made a table, and where."""
    versions = result.get("versions", {}).get("torch") or result.get("torch")
    made = f"`{result['command']}`, {result['hardware']}, torch {versions}, commit `{result['commit'][:10]}`."
    return f"{made} {result['note']}" if result.get("note") else made


def main() -> None:
    """Fill the page and the README's marked part."""
    lenet5, line = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("lenet_cifar10", "linear")
    )
    page = f"""# Measurements

Every figure here was written by `benchmarks/tables.py` from `benchmarks/results/`.

## LeNet-5 on CIFAR-10

{lenet5["epochs"]} epochs, mean and standard deviation over seeds {", ".join(map(str, lenet5["seeds"]))};
test accuracy after the last epoch. Memory is parameters and buffers, without gradients and optimizer state.

{lenet(lenet5)}

{source(lenet5)}

## A linear layer, forward and backward

n inputs and outputs, batch {line["batch"]}, float32, {line["threads"]} thread(s): speed over `nn.Linear`,
medians of interleaved rounds, above 1 is faster. `native` is the [native kernel](kernels.md), here built for
{line["kernels"]}; `zero` and SparseProp do S alone.

{linear(line)}

The transform alone, a DCT-II of {line["batch"]} rows: the native kernel's time, and others' as multiples
of it.

{transforms(line)}

{source(line)}
"""
    (ROOT / "docs" / "results.md").write_text(page)
    readme = ROOT / "README.md"
    marked = re.compile(r"(<!-- lenet -->\n).*?(\n<!-- /lenet -->)", re.DOTALL)
    readme.write_text(marked.sub(lambda m: m[1] + lenet(lenet5) + m[2], readme.read_text()))


if __name__ == "__main__":
    main()
