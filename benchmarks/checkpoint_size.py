"""What a checkpoint of a network of ResNet50's size weighs, and how close packed supports are to the entropy.

    python benchmarks/checkpoint_size.py

Every figure is the size of a file that was written. The network has ResNet50's layers for 32 x 32 images and
ten classes: a 3 x 3 first convolution, 53 convolutions and a linear layer of 23,467,712 weights, and batch
norms of 26,560 channels. Counts per layer are `epl`'s.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dctps
from dctps.checkpoint import gaps
from dctps.counter import derive_key, sample
from dctps.nn import DpSLayer
from dctps.sparse import random_support

DENSITIES = (0.01, 0.001, 0.0001)
# (blocks, channels within, stride) of the four stages; a stage's outputs are four times its channels.
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
RESULT = Path(__file__).parent / "results" / "checkpoint_size.json"


def layers() -> dict[str, tuple[int, int, int, int]]:
    """(inputs, outputs, kernel, stride) of each convolution, by its name."""
    found = {"conv1": (3, 64, 3, 1)}
    inputs = 64
    for stage, (blocks, width, stride) in enumerate(STAGES, 1):
        for block in range(blocks):
            name, step = f"layer{stage}.{block}", stride if block == 0 else 1
            found[f"{name}.conv1"] = (inputs, width, 1, 1)
            found[f"{name}.conv2"] = (width, width, 3, step)
            found[f"{name}.conv3"] = (width, 4 * width, 1, 1)
            if block == 0:
                found[f"{name}.downsample.0"] = (inputs, 4 * width, 1, step)
            inputs = 4 * width
    return found


def network(*, norms: bool) -> nn.Module:
    """The layers under their usual names, without the graph between them."""
    root = nn.Module()
    for name, (inputs, outputs, kernel, stride) in layers().items():
        _put(root, name, nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False))
        if norms:
            norm = name.replace("conv", "bn").replace("downsample.0", "downsample.1")
            _put(root, norm, nn.BatchNorm2d(outputs))
    root.fc = nn.Linear(2048, 10, bias=norms)
    return root


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    root.add_module(last, module)


def file_bytes(density: float, packed: bool, half: bool, norms: str | None) -> int:
    """Size of one file; norms None: of S, alpha and metadata alone."""
    with torch.device("meta"):
        model = network(norms=norms is not None)
    dctps.sparsify_(model, density)
    for layer in (m for m in model.modules() if isinstance(m, DpSLayer)):
        with torch.no_grad():
            layer.values.normal_()
        if packed:  # supports that no seed of the layer gives
            size = math.prod(layer.offset.shape)
            layer.support.copy_(random_support(size, layer.nnz, seed=1, layer=layer.offset.layer))
            layer.seal()
    with tempfile.TemporaryDirectory() as folder:
        values = torch.float16 if half else None
        dctps.save_pretrained(model, folder, values_dtype=values, norms=norms or "full")
        return (Path(folder) / "model.safetensors").stat().st_size


def sizes() -> list[dict[str, Any]]:
    """One row for each density, coding of supports, dtype of values, and kind of norms."""
    dense = 4 * sum(i * o * k * k for i, o, k, _ in layers().values()) + 4 * 20480
    rows = []
    for density in DENSITIES:
        for packed in (False, True):
            for half in (False, True):
                for norms in (None, "full", "half", "folded", "folded-half"):
                    size = file_bytes(density, packed, half, norms)
                    row = {
                        "density": density,
                        "support": "packed" if packed else "seeded",
                        "values": "float16" if half else "float32",
                        "norms": norms,
                        "bytes": size,
                        "of_dense": size / dense,
                    }
                    print(row, flush=True)
                    rows.append(row)
    return rows


def overheads() -> list[dict[str, Any]]:
    """Bits of packed supports over log2 C(size, nnz): uniform ones, and ones within a tenth of the rows."""
    rows = []
    for size in (1000, 36_864, 2_359_296):
        for density in (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9):
            nnz = round(density * size)
            if not nnz:
                continue
            bound = (math.lgamma(size + 1) - math.lgamma(nnz + 1) - math.lgamma(size - nnz + 1)) / math.log(2)
            row = {"size": size, "density": density, "nnz": nnz, "bound_bits": bound}
            for kind, places in (("uniform", size), ("clustered", size // 10)):
                if nnz <= places:
                    support = sample(derive_key(0, kind, "benchmark"), nnz, places).numpy()
                    k, bits = gaps.encode(support, size)
                    decoded, _ = gaps.decode(np.packbits(bits), 0, size, nnz, k)
                    assert np.array_equal(decoded, support)
                    row[f"{kind}_over_bound"] = len(bits) / bound
            rows.append(row)
    return rows


def main() -> None:
    """Measure all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    result = {
        "weights": sum(i * o * k * k for i, o, k, _ in layers().values()) + 20480,
        "norm_channels": sum(o for _, o, _, _ in layers().values()),
        "torch": torch.__version__,
        "sizes": sizes(),
        "overheads": overheads(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
