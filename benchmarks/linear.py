"""A linear layer's forward and backward over nn.Linear's, and the transform alone, as ratios in one run.

    python benchmarks/linear.py --threads 2

Candidates are interleaved round by round, each with a warm call before the timed one. Gradients are those of
the input and of every parameter, by `torch.autograd.grad`: none is added to an older one. SparseProp (S
alone) and torch-dct are measured where they are installed. SparseProp brings an OpenMP runtime of its own,
whose threads spin against torch's unless GOMP_SPINCOUNT is small. Also the source of the constants in
`dctps/nn/dispatch.py`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scipy.fft
import torch
from provenance import commit, processor
from torch import Tensor, nn

from dctps import DpSLinear
from dctps.kernels import NativeOffset, linear_forward, variant
from dctps.nn import dps_linear
from dctps.nn.dispatch import choose_backend

SIZES = (512, 1024, 2048, 4096)
DENSITIES = (0.001, 0.01, 0.05)
OFFSETS = ("dct", "sdct", "zero")
RESULT = Path(__file__).parent / "results" / "linear.json"


def layer_steps(n: int, batch: int, density: float, backends: list[str]) -> dict[str, Callable[[], Any]]:
    """One forward and backward of each candidate."""
    x = torch.randn(batch, n, requires_grad=True)
    g = torch.randn(batch, n)

    def step(product: Callable[[Tensor], Tensor], parameters: list[Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(product(x), [x, *parameters], g)

    dense = nn.Linear(n, n)
    found = {"nn.Linear": step(dense, list(dense.parameters()))}
    for offset in OFFSETS:
        layer = DpSLinear(n, n, offset=offset, density=density)
        parts = layer.values, layer.support, layer.offset, layer.alpha, layer.bias
        for backend in backends:

            def product(x: Tensor, parts: Any = parts, backend: Any = backend) -> Tensor:
                return dps_linear(x, *parts, backend=backend)

            found[f"{offset} {backend}"] = step(product, list(layer.parameters()))
        if offset == "zero" and (peer := optional("sparseprop.modules.linear")):
            sparse = nn.Linear(n, n)
            with torch.no_grad():
                sparse.weight.copy_(layer.to_dense())
            found["sparseprop"] = sparseprop_step(peer.SparseLinear.from_dense(sparse), x, g)
    return found


def sparseprop_step(layer: nn.Module, x: Tensor, g: Tensor) -> Callable[[], Any]:
    """Its gradients go to `.grad`, which are dropped before each step."""
    parameters = [x, *layer.parameters()]

    def run() -> None:
        for p in parameters:
            p.grad = None
        layer(x).backward(g)

    return run


def transform_steps(n: int, batch: int) -> dict[str, Callable[[], Any]]:
    """The DCT-II of each candidate, and a real FFT of the same length."""
    x = torch.randn(batch, n)
    rows, threads = x.numpy(), torch.get_num_threads()
    nothing, one = torch.empty(0), torch.ones(1)
    form = NativeOffset("dct", n)
    found: dict[str, Callable[[], Any]] = {
        "native": lambda: linear_forward(x, nothing, nothing.long(), one, None, form, n),
        "torch.fft.rfft": lambda: torch.fft.rfft(x),
        "scipy": lambda: scipy.fft.dct(rows, norm="ortho", workers=threads),
    }
    if peer := optional("torch_dct"):
        found["torch-dct"] = lambda: peer.dct(x, norm="ortho")
    return found


def optional(name: str) -> Any:
    """A peer's module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def measure(steps: dict[str, Callable[[], Any]], seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds, median and 10th percentile, of 5 rounds or as many as the time allows."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds
    while len(times[next(iter(times))]) < 5 or time.perf_counter() < end:
        for name, step in steps.items():
            step()
            start = time.perf_counter()
            step()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {
        name: {"median_ms": statistics.median(t), "p10_ms": statistics.quantiles(t, n=10)[0]}
        for name, t in times.items()
    }


def main() -> None:
    """Measure every cell, and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each cell, at least 5 rounds")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    parser.add_argument("--backends", nargs="+", default=["native"])
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells, transforms = [], []
    for n in arguments.sizes:
        found = measure(transform_steps(n, arguments.batch), arguments.seconds)
        transforms.append({"n": n, "candidates": found})
        base = found["native"]["median_ms"]
        shown = {name: round(cell["median_ms"] / base, 2) for name, cell in found.items()}
        print(f"{n:5d} transform {base:.3f} ms, over native: {shown}", flush=True)
        for density in arguments.densities:
            found = measure(layer_steps(n, arguments.batch, density, arguments.backends), arguments.seconds)
            base = found["nn.Linear"]["median_ms"]
            chosen = {
                offset: choose_backend(
                    "auto",
                    DpSLinear(n, n, offset=offset, density=density).offset,
                    rows=arguments.batch,
                    nnz=round(density * n * n),
                    native=variant() != "off",
                )
                for offset in OFFSETS
            }
            cells.append({"n": n, "density": density, "candidates": found, "chosen": chosen})
            shown = {name: round(base / cell["median_ms"], 2) for name, cell in found.items()}
            print(f"{n:5d} {density} nn.Linear {base:.2f} ms, speed-up over it: {shown}", flush=True)
    result = {
        "command": f"python {' '.join(sys.argv)}",
        "commit": commit(),
        "hardware": processor(),
        "kernels": variant(),
        "threads": arguments.threads,
        "batch": arguments.batch,
        "torch": torch.__version__,
        "note": f"GOMP_SPINCOUNT={os.environ.get('GOMP_SPINCOUNT', 'unset')}.",
        "layers": cells,
        "transforms": transforms,
    }
    arguments.result.parent.mkdir(exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
