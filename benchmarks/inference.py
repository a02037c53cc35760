"""Forward passes of whole networks on one thread, beside dense torch and onnxruntime on the merged model.

python benchmarks/inference.py [--seconds S]

Density 0.1%, `sdct` with fused norms, CIFAR's images, batch 1 and 8; candidates take turns. Writes
benchmarks/results/inference.json, a table of docs/performance.md. Needs onnx and onnxruntime (extra `onnx`).
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import warnings
from pathlib import Path

import onnxruntime
import torch
from torch import nn

from dctps import keep_freed_memory, merge_
from dctps.benchmarking.networks import forward_pass, images_for, network_for
from dctps.benchmarking.record import provenance
from dctps.benchmarking.timing import Step, measure
from dctps.files import write_atomically

RESULT = Path(__file__).parent / "results" / "inference.json"


def main() -> None:
    """Measure every cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--models", nargs="+", default=["vgg19", "resnet50", "mobilenetv2", "lenet5"])
    asked = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    cells = []
    for model in asked.models:
        network = network_for(model, "sdct", 1e-3).eval()
        dense = network_for(model, "dense", 1e-3).eval()
        for batch in (1, 8):
            images = images_for(batch)
            steps = {"dense": forward_pass(dense, images), "sdct": forward_pass(network, images)}
            steps["onnxruntime, merged"] = in_onnxruntime(merge_(copy.deepcopy(network)), images)
            cell = {"model": model, "batch": batch, "density": 1e-3}
            cells.append(cell | {"candidates": measure(steps, asked.seconds)})
            print({n: round(t["median_ms"], 3) for n, t in cells[-1]["candidates"].items()}, flush=True)
    result = provenance(f"python benchmarks/inference.py --seconds {asked.seconds:g}", 1)
    result["versions"]["onnxruntime"] = onnxruntime.__version__
    write_atomically(RESULT, (json.dumps(result | {"cells": cells}, indent=1) + "\n").encode())


def in_onnxruntime(network: nn.Module, images: torch.Tensor) -> Step:
    """The forward pass there, on one thread."""
    model = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network.eval(), (images.contiguous(),), dynamo=True, verbose=False)
    program.save(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.contiguous().numpy()}
    return lambda: session.run(None, feed)


if __name__ == "__main__":
    main()
