"""Train LeNet-5 on the digits in five ways, and compare what each trains, keeps in memory and stores."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from dctps.experiments import RunConfig
from dctps.experiments.run import run

# Each at the best of the rates and starts that were tried.
SPARSE: dict[str, Any] = {"density": 0.005, "lr": 2e-2}
NETWORKS: dict[str, dict[str, Any]] = {
    "DCTpS": {"method": "dctps", "zero_head": True} | SPARSE,
    "sDCTpS": {"method": "sdctps", "zero_head": True} | SPARSE,
    "SynFlow": {"method": "synflow"} | SPARSE,
    "Random (EPL)": {"method": "random-epl", "init": "fan-in"} | SPARSE,
    "dense": {"method": "dense"},
}


def main() -> None:
    """Train all, then print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the run folders here (default: they are deleted)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        compare(arguments.out or Path(scratch), arguments.epochs, arguments.seed)


def compare(folder: Path, epochs: int, seed: int) -> None:
    """One run folder for each network under `folder`, and the table."""
    print(f"LeNet-5 on 32x32 digits, {epochs} epochs each, density 0.5%\n")
    print(
        f"{'network':<14}{'test accuracy':>14}{'trained numbers':>17}{'bytes in memory':>17}{'on disk':>10}"
    )
    for name, choices in NETWORKS.items():
        config = RunConfig(**choices, epochs=epochs, seed=seed)
        # One thread is the fastest for a network this small.
        summary = run(config, out=folder / config.method, threads=1, progress=True)
        report = summary["report"]
        print(
            f"{name:<14}{summary['last_test_accuracy']:>14.1%}{sum(report['trainable'].values()):>17,}"
            f"{report['memory_bytes']:>17,}{report['disk_bytes']:>10,}",
            flush=True,
        )


if __name__ == "__main__":
    main()
