"""LeNet-5 on CIFAR-10: the offsets over three seeds, and every method with one.

    DCTPS_DATA=... python benchmarks/lenet_cifar10.py offsets --out runs/lenet_cifar10 --workers 2
    DCTPS_DATA=... python benchmarks/lenet_cifar10.py methods --out runs/lenet_methods --workers 2

The first writes results/lenet_cifar10.json, the second results/lenet_methods.json. Each is a sweep of runs of
one thread that goes on where it was stopped: with all runs finished nothing is trained, and the table is made
again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

from dctps.benchmarking.record import commit, processor
from dctps.experiments.folder import RunFolder
from dctps.experiments.methods import METHODS
from dctps.experiments.records import read_summary
from dctps.stacks import stacked
from dctps.sweeps.grid import Runs, grid
from dctps.sweeps.sweep import run_sweep

RESULTS = Path(__file__).parent / "results"
ALL = {"model": "lenet5", "dataset": "cifar10"}
IMP_LEVELS = 4  # a training for each, where 20% at a time would be 18 and 24
STUDIES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "offsets": (
        "lenet_cifar10",
        [
            {
                "seed": [0, 1, 2],
                "density": [0.05, 0.005],
                "method": ["dctps", "sdctps", "random-epl", "dense"],
            }
        ],
    ),
    "methods": (
        "lenet_methods",
        [
            {"method": [name for name in METHODS if name != "imp"], "density": [0.02, 0.005]},
            {"method": "imp", "density": [0.02, 0.005], "levels": IMP_LEVELS},
        ],
    ),
}


def summarise(runs: Runs, out: Path) -> list[dict[str, Any]]:
    """One row for each method and density, from the run folders; sizes are the first seed's network's."""
    cells: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for name, config in runs.items():
        cells.setdefault((config.method, config.density), []).append(read_summary(out / name))
    rows = []
    for (method, density), found in cells.items():
        accuracy = [summary["last_test_accuracy"] for summary in found]
        report = found[0]["report"]
        rows.append(
            {
                "method": method,
                "density": density,
                "test_accuracy_mean": statistics.mean(accuracy),
                "test_accuracy_std": statistics.stdev(accuracy) if len(accuracy) > 1 else None,
                "test_accuracy": accuracy,
                "test_accuracy_at_best_validation": [s["best_test_accuracy"] for s in found],
                "best_validation_accuracy": [s["best_val_accuracy"] for s in found],
                "trainable": report["trainable"],
                "epochs_trained": [s["last_epoch"] for s in found],
                "memory_bytes": report["memory_bytes"],
                "disk_bytes": report["disk_bytes"],
                "seconds": [round(s["seconds"], 1) for s in found],
                "versions": found[0]["versions"],
            }
        )
    return rows


def main() -> None:
    """Run what is missing, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, help="folder of the runs; default runs/ and the result's name")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stack", type=int, default=1, help="runs that a worker trains together")
    parser.add_argument("--finished", action="store_true", help="train nothing: a table of the finished runs")
    parser.add_argument("--result", type=Path)
    parser.add_argument("--note", help="what else to say of how the runs were made")
    arguments = parser.parse_args()
    name, tables = STUDIES[arguments.study]
    runs = grid(*tables, shared=ALL | {"epochs": arguments.epochs})
    out = arguments.out or Path("runs") / name
    if not arguments.finished:
        executor = stacked(arguments.stack)
        done = run_sweep(
            runs, out, workers=arguments.workers, executor=executor, progress=True, on_note=print
        )
        if done.failed:
            raise SystemExit("\n".join(f"{run} failed: {error}" for run, error in done.failed.items()))
    missing = [run for run, config in runs.items() if RunFolder(out / run, config).finished() is None]
    rows = summarise({run: config for run, config in runs.items() if run not in missing}, out)
    result = {
        "command": f"python benchmarks/lenet_cifar10.py {arguments.study} --epochs {arguments.epochs}",
        "commit": commit(),
        "hardware": f"{platform.machine()}, {processor()}, {arguments.workers} workers of one thread",
        "versions": rows[0]["versions"],
        "seeds": sorted({config.seed for config in runs.values()}),
        "epochs": arguments.epochs,
        "imp_levels": IMP_LEVELS,
        "missing": missing,
        "note": arguments.note,
        "rows": rows,
    }
    (arguments.result or RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['method']:12} {row['density']!s:8} {row['test_accuracy_mean']:.4f}")


if __name__ == "__main__":
    main()
