"""Private training of LeNet-5 on CIFAR-10: dense, and dctps at two densities, each at its best of a grid.

    DCTPS_DATA=... PYTHONPATH=examples python benchmarks/private.py

`examples/private.py` does the training. For each network the clipping C and the rate are chosen at
`--tune-epsilon` by the accuracy on 5,000 training images that are held out, with one seed; then each epsilon
is run with `--seeds`. A rate is C times lr, as a step of clipped gradients is as long as that.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import opacus
import torch
from torch.utils.data import TensorDataset

from dctps.benchmarking.record import commit, processor
from dctps.data import load_dataset
from private import Choices, accuracy, tensors, train

RESULT = Path(__file__).parent / "results" / "private.json"
HELD_OUT = 5000


def run(choices: Choices, data: TensorDataset, test: TensorDataset) -> dict[str, Any]:
    """One network, trained and tested."""
    start = time.perf_counter()
    model, optimizer, spent = train(choices, data, 10)
    return {
        **vars(choices),
        "accuracy": accuracy(model, test),
        "spent_epsilon": round(spent, 3),
        "noise_multiplier": optimizer.noise_multiplier,
        "trained_numbers": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "images": len(data),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """The rows that the result file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.005, 0.02, 1.0])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 3.0, 8.0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--clippings", nargs="+", type=float, default=[0.1, 1.0])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1, 0.5])
    parser.add_argument("--tune-epsilon", type=float, default=3.0)
    parser.add_argument("--tune-epochs", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    found = load_dataset("cifar10")
    data, test = tensors(found.train), tensors(found.test)
    fit, held = (TensorDataset(*(t[part] for t in data.tensors)) for part in _parts(len(data)))
    rows = json.loads(given.result.read_text())["rows"] if given.result.exists() else []

    def add(role: str, choices: Choices, *sets: TensorDataset) -> dict[str, Any]:
        for row in rows:
            if row["role"] == role and all(row[key] == value for key, value in vars(choices).items()):
                return row
        row = {"role": role, **run(choices, *sets), "commit": commit()}
        rows.append(row)
        print(json.dumps(row), flush=True)
        result = {
            "command": f"python benchmarks/private.py {' '.join(sys.argv[1:])}".strip(),
            "hardware": f"{platform.machine()}, {processor()}, 1 thread, other work beside it",
            "versions": {"torch": torch.__version__, "opacus": opacus.__version__},
            "rows": rows,
        }
        given.result.parent.mkdir(exist_ok=True)
        given.result.write_text(json.dumps(result, indent=1) + "\n")
        return row

    for density in given.densities:
        common = {"dataset": "cifar10", "density": density, "batch_size": given.batch_size}
        tuned = {**common, "epsilon": given.tune_epsilon, "epochs": given.tune_epochs}
        grid = [
            add("grid", Choices(**tuned, clipping=c, lr=rate / c), fit, held)
            for c in given.clippings
            for rate in given.rates
        ]
        best = max(grid, key=lambda row: row["accuracy"])
        chosen = {"clipping": best["clipping"], "lr": best["lr"], "epochs": given.epochs}
        for seed in given.seeds:
            for epsilon in given.epsilons:
                add("run", Choices(**common, **chosen, epsilon=epsilon, seed=seed), data, test)


def _parts(count: int) -> tuple[slice, slice]:
    return slice(HELD_OUT, count), slice(0, HELD_OUT)


if __name__ == "__main__":
    main()
