"""What a RigL update step costs in memory beside an ordinary step, on ResNet50's DCTpS layers.

    python benchmarks/rigl_memory.py

Every layer of a ResNet50 for 32 x 32 images at density 0.1% under the `dct` offset takes one training step
by itself (forward, backward, Adam), in a process of its own: an ordinary step, and one in which RigL moves
weights. So does the whole network. The peak is the process's largest resident memory above what it was
before the step's forward pass; what RigL adds is the difference. Freed memory goes back to the system at
once, so that none of an earlier step hides what a later one takes. It includes what torch's kernels use
inside themselves, such as copies of the input in a layout of their own. The largest block of dense gradient
is what `reduce` would be handed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoint_size import layers
from torch import nn

import dctps
from dctps.benchmarking.memory import peak_resident, reset_peak, resident
from dctps.benchmarking.record import provenance
from dctps.dynamic.rigl import BLOCK_BYTES, largest_gradients
from dctps.models import build_model
from dctps.nn import DpSConv2d, DpSLayer, DpSLinear

DENSITY, BATCH = 1e-3, 32
RESULT = Path(__file__).parent / "results" / "rigl_memory.json"


def shapes() -> dict[str, tuple[int, int, int, int, int]]:
    """(inputs, outputs, kernel, stride, side of the input) of each layer of a different shape."""
    found: dict[tuple[int, ...], str] = {}
    side = 32
    for name, (inputs, outputs, kernel, stride) in layers().items():
        # A block's first convolution is before the stride of its second, a shortcut's input is the block's.
        here = side * stride if name.endswith("downsample.0") else side
        found.setdefault((inputs, outputs, kernel, stride, here), name)
        if name.endswith("conv2") and stride == 2:
            side //= 2
    found[2048, 10, 0, 1, 1] = "fc"
    return {name: shape for shape, name in found.items()}  # type: ignore[misc]


def one(shape: tuple[int, int, int, int, int], moves: bool, results: Any) -> None:
    """One layer by itself, in this process."""
    torch.set_num_threads(1)
    inputs, outputs, kernel, stride, side = shape
    layer: DpSLayer
    if kernel:
        layer = DpSConv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, density=DENSITY)
        x = torch.randn(BATCH, inputs, side, side)
    else:
        layer, x = DpSLinear(inputs, outputs, density=DENSITY), torch.randn(BATCH, inputs)
    target = torch.randn_like(layer(x).detach())
    peak = peak_of_a_step(layer, x, target, moves)
    blocks: list[int] = []
    largest_gradients(layer, [(x, target)], 1, reduce=lambda block: blocks.append(block.nbytes))
    results.put({"peak": peak, "largest_block": max(blocks), "blocks": len(blocks)})


def whole(moves: bool, results: Any) -> None:
    """The whole network, in this process; its weights are counted too."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = build_model("resnet50", 10, 3)
    dctps.sparsify_(model, DENSITY)
    x = torch.randn(BATCH, 3, 32, 32)
    peak = peak_of_a_step(model, x, torch.randn(BATCH, 10), moves)
    results.put((dctps.report(model).weights, peak))


def peak_of_a_step(model: nn.Module, x: torch.Tensor, target: torch.Tensor, moves: bool) -> int:
    """Bytes above those before it, of the second step; the first one warms up."""
    optimizer = torch.optim.Adam(model.parameters())
    rigl = dctps.RigL(model, optimizer, update_interval=2 if moves else 3, end=100, at_least_one=True)
    for step in range(2):
        before = resident()
        reset_peak()
        optimizer.zero_grad()
        model(x).backward(target)
        optimizer.step()
        changed = rigl.step()
        assert changed == (moves and step == 1)
        peak = peak_resident() - before
    return peak


def in_process(function: Callable[..., None], *arguments: Any) -> Any:
    """What a function puts, called in a process of its own."""
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=function, args=(*arguments, results))
    process.start()
    found = results.get()
    process.join()
    return found


def main() -> None:
    """Measure all layers, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
    (weights, step), (_, update_step) = (in_process(whole, moves) for moves in (False, True))
    print(f"whole network: {step:,} and {update_step:,} bytes", flush=True)
    rows = []
    for name, shape in shapes().items():
        found = {moves: in_process(one, shape, moves) for moves in (False, True)}
        inputs, outputs, kernel, _, _ = shape
        row = {
            "layer": name,
            "shape": list(shape),
            "dense_gradient": 4 * inputs * outputs * max(kernel, 1) ** 2,
            "largest_block": found[True]["largest_block"],
            "blocks": found[True]["blocks"],
            "peak_of_a_step": found[False]["peak"],
            "peak_of_an_update_step": found[True]["peak"],
        }
        assert row["largest_block"] <= BLOCK_BYTES
        print(row, flush=True)
        rows.append(row)
    result = {
        "whole_network": {
            "dense_gradient": 4 * weights,
            "peak_of_a_step": step,
            "peak_of_an_update_step": update_step,
        },
        "most_that_rigl_adds": max(r["peak_of_an_update_step"] - r["peak_of_a_step"] for r in rows),
        "density": DENSITY,
        "batch": BATCH,
        "block_bytes": BLOCK_BYTES,
        "rows": rows,
    }
    result |= provenance("python benchmarks/rigl_memory.py", threads=1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
