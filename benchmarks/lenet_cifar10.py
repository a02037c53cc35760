"""LeNet-5 on CIFAR-10: DCTpS, sDCTpS, Random (EPL) and the dense network, mean and spread over seeds.

    DCTPS_DATA=... python benchmarks/lenet_cifar10.py --runs runs/lenet_cifar10 --workers 2

Finished runs are kept, so that the command goes on where it was stopped. Each worker is one process
with one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dctps.benchmarking.record import commit, processor
from dctps.experiments.config import RunConfig, run_name

METHODS = ("dctps", "sdctps", "random-epl")
DENSITIES = (0.05, 0.005)
SEEDS = (0, 1, 2)
RESULT = Path(__file__).parent / "results" / "lenet_cifar10.json"


def configurations(epochs: int) -> list[RunConfig]:
    """Every run of the study."""
    common: dict[str, Any] = {"model": "lenet5", "dataset": "cifar10", "epochs": epochs}
    sparse = [
        RunConfig(**common, method=method, density=density, seed=seed)
        for seed, density, method in itertools.product(SEEDS, DENSITIES, METHODS)
    ]
    return sparse + [RunConfig(**common, method="dense", density=None, seed=seed) for seed in SEEDS]


def train(config: RunConfig, runs: Path) -> dict[str, Any]:
    """One run, in a worker."""
    from dctps.experiments.run import run  # noqa: PLC0415 (the parent process never needs torch)

    return run(config, out=runs / run_name(config), threads=1)


def summarise(configs: list[RunConfig], summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and density; sizes are those of the networks as this version saves them."""
    from dctps.experiments.network import describe  # noqa: PLC0415

    rows = []
    cells: dict[tuple[str, float | None], list[tuple[RunConfig, dict[str, Any]]]] = {}
    for config, summary in zip(configs, summaries, strict=True):
        density = None if config.method == "dense" else config.density
        cells.setdefault((config.method, density), []).append((config, summary))
    for (method, density), runs in cells.items():
        found = [summary for _, summary in runs]
        accuracy = [summary["last_test_accuracy"] for summary in found]
        report = describe(runs[0][0]).to_dict()
        rows.append(
            {
                "method": method,
                "density": density,
                "test_accuracy_mean": statistics.mean(accuracy),
                "test_accuracy_std": statistics.stdev(accuracy),
                "test_accuracy": accuracy,
                "test_accuracy_at_best_validation": [s["best_test_accuracy"] for s in found],
                "trainable": report["trainable"],
                "memory_bytes": report["memory_bytes"],
                "disk_bytes": report["disk_bytes"],
                "seconds": [round(s["seconds"], 1) for s in found],
            }
        )
    return rows


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/lenet_cifar10"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--note", help="what else to say of how the runs were made")
    arguments = parser.parse_args()
    configs = configurations(arguments.epochs)
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        summaries = list(pool.map(train, configs, itertools.repeat(arguments.runs)))
    rows = summarise(configs, summaries)
    result = {
        "command": f"python benchmarks/lenet_cifar10.py --epochs {arguments.epochs}",
        "commit": commit(),
        "hardware": f"{platform.machine()}, {processor()}, {arguments.workers} workers of one thread",
        "versions": summaries[0]["versions"],
        "seeds": list(SEEDS),
        "epochs": arguments.epochs,
        "note": arguments.note,
        "rows": rows,
    }
    arguments.result.parent.mkdir(exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        mean, std = row["test_accuracy_mean"], row["test_accuracy_std"]
        print(f"{row['method']:12} {row['density']!s:8} {mean:.4f} +- {std:.4f}", file=sys.stdout)


if __name__ == "__main__":
    main()
