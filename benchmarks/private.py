"""Private training of LeNet-5 on CIFAR-10: dense, and dctps at two densities, each at its best of a grid.

    DCTPS_DATA=... python benchmarks/private.py

`examples/private.py` does the training. For each network the clipping C, the rate and whether alpha trains
are chosen at `--tune-epsilon` by the accuracy on 5,000 training images that are held out, with one seed,
among all such rows of the result file; then each epsilon is run with `--seeds`. A rate is C times lr, as a
step of clipped gradients is as long as that.
`--speed` times the per-sample gradients of a batch instead: by Opacus, and by `torch.func`.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import opacus
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset

import dctps
from dctps.benchmarking.record import commit, processor
from dctps.data import load_dataset
from dctps.models import build_model
from dctps.private import per_sample

EXAMPLE = Path(__file__).parents[1] / "examples" / "private.py"
_SPEC = importlib.util.spec_from_file_location("private_example", EXAMPLE)
assert _SPEC is not None and _SPEC.loader is not None
example = sys.modules["private_example"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(example)

RESULT = Path(__file__).parent / "results" / "private.json"
HELD_OUT = 5000


def run(choices: Any, data: TensorDataset, test: TensorDataset) -> dict[str, Any]:
    """One network, trained and tested."""
    start = time.perf_counter()
    model, optimizer, spent = example.train(choices, data, 10)
    return {
        **vars(choices),
        "accuracy": example.accuracy(model, test),
        "spent_epsilon": round(spent, 3),
        "noise_multiplier": optimizer.noise_multiplier,
        "trained_numbers": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "images": len(data),
        "seconds": round(time.perf_counter() - start, 1),
    }


def speed(density: float, batch: int = 256) -> dict[str, Any]:
    """Milliseconds of CPU for a plain step's gradients, for per-sample ones by Opacus, and by torch.func."""
    model: nn.Module = build_model("lenet5", 10, 3)
    if density < 1:
        dctps.sparsify_(model, density)
    x, y = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    own = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    wrapped = per_sample(copy.deepcopy(model))

    def one(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    def by_opacus() -> None:
        F.cross_entropy(wrapped(x), y).backward()
        wrapped.zero_grad()

    ways = {
        "plain": lambda: F.cross_entropy(model(x), y).backward(),
        "opacus": by_opacus,
        "torch.func": lambda: vmap(grad(one), (None, 0, 0))(own, x, y),
    }
    found: dict[str, Any] = {"density": density, "batch": batch}
    for name, way in ways.items():
        way()
        times = []
        for _ in range(7):
            start = time.process_time()
            way()
            times.append(time.process_time() - start)
        found[name] = round(1e3 * sorted(times)[3], 1)
    found["bytes_of_gradients"] = 4 * batch * sum(p.numel() for p in own.values())
    return found


def main() -> None:
    """The rows that the result file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--densities", nargs="+", type=float, default=[0.005, 0.02, 1.0])
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 3.0, 8.0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--clippings", nargs="+", type=float, default=[0.1, 1.0])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1, 0.5])
    parser.add_argument("--alpha", type=int, default=0)
    parser.add_argument("--tune-epsilon", type=float, default=3.0)
    parser.add_argument("--tune-epochs", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--speed", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    kept = json.loads(given.result.read_text()) if given.result.exists() else {}
    if given.speed:
        kept["speed"] = [speed(density) for density in given.densities]
        write(given.result, kept, "speed_")
        return
    found = load_dataset("cifar10")
    data, test = example.tensors(found.train), example.tensors(found.test)
    fit, held = (TensorDataset(*(t[part] for t in data.tensors)) for part in _parts(len(data)))
    rows = kept.setdefault("rows", [])

    def add(role: str, choices: Any, *sets: TensorDataset) -> dict[str, Any]:
        for row in rows:
            if row["role"] == role and all(row[key] == value for key, value in vars(choices).items()):
                return row
        row = {"role": role, **run(choices, *sets), "commit": commit()}
        rows.append(row)
        print(json.dumps(row), flush=True)
        write(given.result, kept)
        return row

    for density in given.densities:
        common = {"dataset": "cifar10", "density": density, "batch_size": given.batch_size}
        tuned = {**common, "epsilon": given.tune_epsilon, "epochs": given.tune_epochs}
        for c in given.clippings:
            for rate in given.rates:
                add("grid", example.Choices(**tuned, alpha=given.alpha, clipping=c, lr=rate / c), fit, held)
        grid = [row for row in rows if row["role"] == "grid" and tuned.items() <= row.items()]
        best = max(grid, key=lambda row: row["accuracy"])
        chosen = {key: best[key] for key in ("alpha", "clipping", "lr")} | {"epochs": given.epochs}
        for seed in given.seeds:
            for epsilon in given.epsilons:
                add("run", example.Choices(**common, **chosen, epsilon=epsilon, seed=seed), data, test)


def write(path: Path, kept: dict[str, Any], prefix: str = "") -> None:
    """The result file, and how it was made."""
    kept |= {
        f"{prefix}command": f"python benchmarks/private.py {' '.join(sys.argv[1:])}".strip(),
        f"{prefix}commit": commit(),
        "hardware": f"{platform.machine()}, {processor()}, 1 thread, other work beside it",
        "versions": {"torch": torch.__version__, "opacus": opacus.__version__},
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n")


def _parts(count: int) -> tuple[slice, slice]:
    return slice(HELD_OUT, count), slice(0, HELD_OUT)


if __name__ == "__main__":
    main()
