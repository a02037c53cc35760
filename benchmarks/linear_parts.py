"""Where the time of a linear layer's step goes: native code, Python and autograd; beside SparseProp.

    python benchmarks/linear_parts.py

Forward and backward at batch 256 on two threads, float32; candidates take turns. `native` is the two native
calls alone, on the same tensors; for `zero` they do S and no D, as SparseProp does.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch

from dctps.benchmarking.layers import layer_step, sparseprop_step
from dctps.benchmarking.record import provenance
from dctps.benchmarking.timing import Step, measure
from dctps.files import write_atomically
from dctps.nn import DpSLinear
from dctps.product.geometry import ROWS
from dctps.product.paths.rows import ROWS_PATH
from dctps.product.weight import Weight

RESULT = Path(__file__).parent / "results" / "linear_parts.json"
SIZES, DENSITIES, BATCH, SECONDS = (512, 1024, 2048, 4096), (0.001, 0.01, 0.05), 256, 0.7


def native_step(layer: DpSLinear, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """The same numbers by the two native calls alone."""
    alpha = None if layer.alpha is None else layer.alpha.detach()
    weight = Weight(layer.values.detach(), alpha, layer.support, layer.offset)
    bias = layer.bias if layer.bias is None else layer.bias.detach()
    y = ROWS_PATH.forward(x.detach(), weight, ROWS, bias, None)  # held until the end, as in a step
    ROWS_PATH.backward(g, x.detach(), weight, ROWS, None, (True, True, True, True))
    return y


def main() -> None:
    """Measure every cell."""
    torch.set_num_threads(2)
    cells = []
    for n in SIZES:
        for density in DENSITIES:
            x, g = torch.randn(BATCH, n, requires_grad=True), torch.randn(BATCH, n)
            steps: dict[str, Step] = {}
            for offset in ("dct", "zero"):
                layer = DpSLinear(n, n, offset=offset, density=density)
                steps[f"{offset} layer"] = layer_step(layer, x, g)
                steps[f"{offset} native"] = partial(native_step, layer, x, g)
            peer = sparseprop_step(DpSLinear(n, n, offset="zero", density=density).merged(), x, g)
            if peer is None:
                raise SystemExit("SparseProp is not installed: it is of the extra `peers`")
            steps["SparseProp"] = peer
            cells.append({"n": n, "density": density, "candidates": measure(steps, SECONDS)})
            print(n, density, {k: round(v["median_ms"], 3) for k, v in cells[-1]["candidates"].items()})
    result = {**provenance("python benchmarks/linear_parts.py", 2), "batch": BATCH, "cells": cells}
    write_atomically(RESULT, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
