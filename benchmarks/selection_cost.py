"""Time and memory to a support: the criteria on whole networks.

    python benchmarks/selection_cost.py

Each cell is a process of its own: it builds the dense network, chooses the weights that train, and states the
seconds of that and how far the process's resident memory rose above what it was with the network built, in
bytes for each weight too. `force` and `iter-snip` take `--steps` of their 60 steps, `synflow` as large a part
of its 100 rounds; the seconds of all of them are then in proportion. Each cell notes the machine's load
before it, the CPU seconds of its threads together, and the commit. Cells of the same hardware and torch that
are not asked for stay in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import dctps
from dctps.benchmarking.memory import peak_resident, reset_peak, resident
from dctps.benchmarking.record import provenance
from dctps.files import write_atomically
from dctps.models import build_model

RESULT = Path(__file__).parent / "results" / "selection_cost.json"
CRITERIA = ["epl", "magnitude", "snip", "grasp", "force", "synflow"]
FULL = {"force": 60, "iter-snip": 60, "synflow": 100}


def built(model: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """A network and its inputs' shape: one by name, or `linear`, in which nothing but weights weighs."""
    if model == "linear":
        layers = [torch.nn.Linear(1024, 1024, bias=False) for _ in range(4)]
        return torch.nn.Sequential(*(m for layer in layers for m in (layer, torch.nn.ReLU()))), (1024,)
    return build_model(model, 100, 3), (3, 32, 32)


def cell(model: str, criterion: str, density: float, images: int, batch: int, steps: int) -> dict[str, Any]:
    """One measurement, in this process."""
    torch.manual_seed(0)
    network, shape = built(model)
    weights = sum(
        m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    )
    data = [(torch.randn(len(part), *shape), part % 100) for part in torch.arange(images).split(batch)]
    taken = {"force": steps, "iter-snip": steps, "synflow": round(steps * 100 / 60)}.get(criterion, 1)
    scored: Any = criterion
    if criterion in FULL:
        name = "rounds" if criterion == "synflow" else "steps"
        scored = partial(getattr(dctps.criteria, criterion.replace("-", "_")), **{name: taken})
    options = {"allocation": "epl"} if criterion == "epl" else {"criterion": scored, "batches": data}
    on_offset = criterion.startswith("offset")
    before, load = resident(), os.getloadavg()[0]
    reset_peak()
    started, used = time.perf_counter(), time.process_time()
    dctps.sparsify_(network, density, offset="dct" if on_offset else "zero", **options)
    seconds, used = time.perf_counter() - started, time.process_time() - used
    peak = peak_resident() - before
    return {
        "model": model,
        "criterion": criterion,
        "weights": weights,
        "density": density,
        "images": images,
        "batch": batch,
        "looks": taken,
        "seconds": seconds,
        "seconds_of_all_looks": seconds / taken * FULL.get(criterion, 1),
        "cpu_seconds": used,
        "cpu_seconds_of_all_looks": used / taken * FULL.get(criterion, 1),
        "peak_bytes": peak,
        "peak_bytes_per_weight": peak / weights,
        "load": load,
    }


def main() -> None:
    """Measure each cell in a process of its own, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg19", "resnet50"])
    parser.add_argument("--criteria", nargs="+", default=CRITERIA)
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--images", type=int, default=100, help="to score on, in each look")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60, help="of force and iter-snip; synflow in proportion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", help="what else to say of how it was measured")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.cell:
        sizes = (arguments.density, arguments.images, arguments.batch, arguments.steps)
        print(json.dumps(cell(*arguments.cell, *sizes)))
        return
    made = provenance("python benchmarks/selection_cost.py", arguments.threads) | {"note": arguments.note}
    old = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    same = all(old.get(name) == made[name] for name in ("hardware", "threads", "versions"))
    rows = [
        row
        for row in (old["rows"] if same else [])
        if row["model"] not in arguments.models or row["criterion"] not in arguments.criteria
    ]
    for model in arguments.models:
        for criterion in arguments.criteria:
            command = [sys.executable, *sys.argv, "--cell", model, criterion]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout) | {"commit": made["commit"]})
            print(rows[-1], flush=True)
            write_atomically(arguments.out, (json.dumps(made | {"rows": rows}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
