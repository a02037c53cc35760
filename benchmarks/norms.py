"""What scales, shifts and biases are worth at extreme densities: own ones, shared ones, none.

    DCTPS_DATA=... python benchmarks/norms.py --model resnet18 --density 1e-4 --epochs 10 --device cuda

Finished runs are kept, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from dctps.benchmarking.record import commit, processor
from dctps.experiments import RunConfig
from dctps.experiments.config import run_name
from dctps.experiments.run import run

NORMS = ("affine", "shared", "plain")
RESULT = Path(__file__).parent / "results" / "norms.json"


def main() -> None:
    """Run what is missing, print a line for each run, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--method", default="sdctps")
    parser.add_argument("--density", type=float, nargs="+", default=[1e-4, 1e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/norms"))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()

    rows: list[dict[str, Any]] = []
    for density in arguments.density:
        for norm in NORMS:
            configs = [
                RunConfig(
                    model=arguments.model,
                    dataset=arguments.dataset,
                    method=arguments.method,
                    density=density,
                    epochs=arguments.epochs,
                    norm=norm,
                    seed=seed,
                )
                for seed in range(arguments.seeds)
            ]
            summaries = [
                run(
                    config,
                    out=arguments.runs / run_name(config),
                    device=arguments.device,
                    threads=arguments.threads,
                )
                for config in configs
            ]
            row = {
                "density": density,
                "norm": norm,
                "test_accuracy": [summary["last_test_accuracy"] for summary in summaries],
                "trainable": summaries[0]["report"]["trainable"],
                "disk_bytes": summaries[0]["report"]["disk_bytes"],
                "device": summaries[0]["device"],
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    described = {key: getattr(arguments, key) for key in ("model", "dataset", "method", "epochs", "seeds")}
    where = {"commit": commit(), "cpu": processor(), "python": platform.python_version()}
    if torch.cuda.is_available():
        where["gpu"] = torch.cuda.get_device_name()
    result = described | where | {"torch": torch.__version__, "rows": rows}
    arguments.result.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
