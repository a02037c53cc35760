"""Time and memory to a support: the criteria on whole networks.

    python benchmarks/selection_cost.py --models vgg19 resnet50 --criteria epl snip grasp force synflow

Each cell is a process of its own: it builds the dense network, chooses the weights that train, and states the
seconds of that and how far the process's resident memory rose above what it was with the network built, in
bytes for each weight too. `force` and `iter-snip` take `--steps` of their 60 steps, `synflow` as large a part
of its 100 rounds; the seconds of all of them are then in proportion.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import dctps
from dctps.benchmarking.record import commit, processor
from dctps.models import build_model

RESULT = Path(__file__).parent / "results" / "selection_cost.json"
FULL = {"force": 60, "iter-snip": 60, "synflow": 100}


class Peak:
    """The most resident memory of this process while it is open, above what it was at its opening."""

    def __enter__(self) -> Peak:
        self._before = self.bytes = _resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, _resident())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes -= self._before


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


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
    with Peak() as peak:
        started = time.perf_counter()
        dctps.sparsify_(network, density, offset="dct" if on_offset else "zero", **options)
        seconds = time.perf_counter() - started
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
        "peak_bytes": peak.bytes,
        "peak_bytes_per_weight": peak.bytes / weights,
    }


def main() -> None:
    """Measure each cell in a process of its own, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vgg19", "resnet50"])
    parser.add_argument("--criteria", nargs="+", default=["epl", "snip", "grasp", "force", "synflow"])
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--images", type=int, default=100, help="to score on, in each look")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60, help="of force and iter-snip; synflow in proportion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.cell:
        sizes = (arguments.density, arguments.images, arguments.batch, arguments.steps)
        print(json.dumps(cell(*arguments.cell, *sizes)))
        return
    rows = []
    for model in arguments.models:
        for criterion in arguments.criteria:
            command = [sys.executable, *sys.argv, "--cell", model, criterion]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            print(rows[-1], flush=True)
    result = {
        "command": f"python {' '.join(sys.argv)}",
        "hardware": processor(),
        "threads": arguments.threads,
        "torch": torch.__version__,
        "commit": commit(),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
