"""One pretrained network, two adapters of a few kilobytes, switched in place.

    python examples/adapters.py --out DIR

A small convolutional network learns the bundled digits. It is then adapted to the digits turned upside down,
and to digits in white noise, by a sparse S on each of its weights. Each adapter goes into a file of its own;
a fresh copy of the network loads both, switches between them, and merges one.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dctps
from dctps.adapters import disable, load_adapter_, merge_adapter_, save_adapter, set_adapter_
from dctps.data import load_digits, normalize
from dctps.data.tensors import ImageTensors

Change = Callable[[Tensor], Tensor]


def build() -> nn.Module:
    """Two convolutions with norms, and two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def as_they_are(images: Tensor) -> Tensor:
    """No change."""
    return images


def upside_down(images: Tensor) -> Tensor:
    """The last row first."""
    return images.flip(2)


def in_noise(images: Tensor) -> Tensor:
    """The same noise on every call."""
    return images + 1.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rate: float) -> None:
    """Adam on what requires a gradient, in batches of 64."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of images that are classified correctly."""
    return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Pretrain, adapt twice, save, load, switch, merge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--density", type=float, default=0.02)
    parser.add_argument("--out", type=Path, default=Path("adapters"))
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load_digits()

    def part(which: ImageTensors, change: Change) -> tuple[Tensor, Tensor]:
        return change(normalize(which.images, data.mean, data.std)), which.labels

    base = build()
    train(base, *part(data.train, as_they_are), options.epochs, 3e-3)
    print(f"pretrained: {accuracy(base, *part(data.test, as_they_are)):.1%} of the digits")

    tasks: dict[str, Change] = {"upside-down": upside_down, "in-noise": in_noise}
    for name, change in tasks.items():
        model = dctps.adapt_(copy.deepcopy(base), options.density, name=name)
        before = accuracy(model, *part(data.test, change))
        train(model, *part(data.train, change), options.epochs, 1e-2)
        save_adapter(model, options.out / name, values_dtype=torch.float16)
        size = (options.out / name / "adapter.safetensors").stat().st_size
        after = accuracy(model, *part(data.test, change))
        print(f"{name}: {before:.1%} before, {after:.1%} with an adapter of {size:,} bytes")

    for name in tasks:
        load_adapter_(base, options.out / name, name)
    for name, change in tasks.items():
        set_adapter_(base, name)
        print(f"loaded {name}: {accuracy(base, *part(data.test, change)):.1%}")
    merge_adapter_(base)
    print(f"merged {name}: {accuracy(base, *part(data.test, change)):.1%}")
    with disable(base):
        print(f"the base again: {accuracy(base, *part(data.test, as_they_are)):.1%} of the digits")


if __name__ == "__main__":
    main()
