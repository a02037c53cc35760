"""Where runs of LeNet-5 on CIFAR-10 end that were trained in a stack, and by themselves, on the same batches.

    python benchmarks/stacked_ends.py DIR [WORKERS]     # trains what DIR lacks: 24 runs a side

Float32 sums in another order, so that single runs part after some hundreds of steps; what must agree is where
the seeds of a cell end, within their spread.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dctps.analysis.aggregate import over_seeds
from dctps.analysis.runs import Run, read_runs
from dctps.benchmarking.record import provenance
from dctps.files import write_atomically

RESULT = Path(__file__).parent / "results" / "stacked_ends.json"
FIELDS = (
    "model=lenet5",
    "dataset=cifar10",
    "method=dctps,sdctps,synflow,hyperplane",
    "density=0.01,0.002",
    "seed=0,1,2",
    "batch_seed=0",
    "epochs=5",
)
SIDES = {"stacked": ("--stack", "24"), "separate": ()}


def accuracy(run: Run) -> float | None:
    """Largest validation accuracy in percent, as Figure 1 has it."""
    return None if run.max_val_accuracy is None else 100 * run.max_val_accuracy


def main() -> None:
    """Train both sides, and note where each cell ends."""
    out, workers = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "1"
    for side, flags in SIDES.items():
        command = [sys.executable, "-m", "dctps", "sweep", *FIELDS, "--out", str(out / side)]
        subprocess.run([*command, "--workers", workers, *flags], check=True)
    found = {side: over_seeds(read_runs(out / side), accuracy) for side in SIDES}
    rows: list[dict[str, Any]] = []
    for setting, stacked in found["stacked"].items():
        separate = found["separate"][setting]
        row = {"method": setting.method, "density": setting.density}
        for side, cell in (("stacked", stacked), ("separate", separate)):
            row |= {side: cell.values, f"{side}_mean": cell.mean, f"{side}_std": cell.std}
        rows.append(row)
        print(json.dumps(rows[-1]))
    result = {**provenance("python benchmarks/stacked_ends.py DIR", 1), "rows": rows}
    write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
