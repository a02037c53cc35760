"""How much of a batch is left after each layer of a network that has not been trained, under each offset.

    DCTPS_DATA=... python benchmarks/signal_left.py

VGG19 and ResNet50 at 16 x 16 pixels, in training mode, density 0 and alpha 1, as `dctps train` begins. For
the output of each layer: the effective number of channels, C^2 / ||correlations||^2, which is 1 if all are
one and the same; and how alike two images of the batch are, the mean cosine of their centred outputs, which
is 0 for images that differ as random ones do and 1 where nothing of them is left. `dct-channels-slowest` is
D with patches read in PyTorch's own order. Writes benchmarks/results/signal_left.json.
"""

from __future__ import annotations

import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import torch
from moments import is_layer
from torch import Tensor, nn

import dctps
from dctps import register_offset
from dctps.benchmarking.record import commit, processor
from dctps.data import load_dataset, normalize
from dctps.files import write_atomically
from dctps.models import build_model
from dctps.offsets import Offset
from dctps.transforms import dct

RESULT = Path(__file__).parent / "results" / "signal_left.json"
NETWORKS = ("vgg19", "resnet50")
IMAGES, SIDE, SEEDS = 256, 16, (0, 1, 2)


@register_offset("dct-channels-slowest")
class SlowestDCT(Offset):
    """The m first rows of a cosine transform, over patches with the channel slowest."""

    def to_dense(self, *, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Tensor:
        """D."""
        n = self.in_features
        q = max(self.out_features, n)
        rows = dct(torch.eye(q, dtype=torch.float64)).T[: self.out_features, :n]
        return rows.reshape(self.shape).to(device, dtype)


OFFSETS = ("dense", "dct", SlowestDCT.name, "sdct", "hadamard", "gaussian")


def build(name: str, offset: str, seed: int) -> nn.Module:
    """The network as it begins."""
    torch.manual_seed(seed)
    model = build_model(name, 10, 3)
    return model if offset == "dense" else dctps.sparsify_(model, 0, offset=offset, seed=seed)


def effective_channels(y: Tensor) -> float:
    """The participation ratio of the spectrum of the channels' correlations."""
    channels = y.transpose(0, 1).flatten(1)
    unit = nn.functional.normalize(channels - channels.mean(1, keepdim=True))
    return float(len(channels) ** 2 / (unit @ unit.T).square().sum())


def likeness(y: Tensor) -> float:
    """The mean cosine of two images' outputs, without what all images have in common."""
    images = y.flatten(1)
    unit = nn.functional.normalize(images - images.mean(0))
    alike = unit @ unit.T
    return float((alike.square().sum() - len(images)) / (len(images) * (len(images) - 1))) ** 0.5


@torch.no_grad()
def layers_of(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """The loss, and a row for each layer in order."""
    rows: list[dict[str, Any]] = []

    def record(name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        y = output.double()
        rows.append(
            {
                "layer": name,
                "channels": y.shape[1],
                "effective_channels": round(effective_channels(y), 3),
                "likeness": round(likeness(y), 4),
                "mean_square": float(f"{y.square().mean():.4g}"),
            }
        )

    for name, module in model.named_modules():
        if is_layer(module):
            module.register_forward_hook(partial(record, name))
    loss = nn.functional.cross_entropy(model(images), labels)
    return {"loss": float(loss), "layers": rows}


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    dataset = load_dataset("cifar10")
    images = nn.functional.interpolate(
        normalize(dataset.train.images[:IMAGES], dataset.mean, dataset.std), size=SIDE, mode="area"
    )
    labels = dataset.train.labels[:IMAGES]
    runs = []
    for name in NETWORKS:
        for offset in OFFSETS:
            for seed in SEEDS:
                found = layers_of(build(name, offset, seed).train(), images, labels)
                runs.append({"network": name, "offset": offset, "seed": seed, **found})
            last = found["layers"][-2]
            print(name, offset, f"loss {found['loss']:.2f}, {last}")
    result = {
        "command": "python benchmarks/signal_left.py",
        "commit": commit(),
        "hardware": f"{platform.machine()}, {processor()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "images": f"the first {IMAGES} training images of CIFAR-10 at {SIDE} x {SIDE} pixels",
        "runs": runs,
    }
    write_atomically(RESULT, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main()
