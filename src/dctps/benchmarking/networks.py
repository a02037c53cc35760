"""Training steps and forward passes of whole networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dctps.benchmarking.timing import Step, measure
from dctps.models import build_model
from dctps.selection import sparsify_
from dctps.training import build_optimizer, parameter_groups

Cell = dict[str, Any]

BATCHES = {"vgg19": 32, "resnet50": 16, "mobilenetv2": 32, "lenet5": 128}
_CLASSES, _RATE = 10, 1e-4


def network_cells(
    models: Sequence[str], batch: int | None, density: float, offsets: Sequence[str], seconds: float
) -> Iterator[Cell]:
    """A training step (forward, backward, Adam) and a forward pass of each network beside the dense one."""
    for model in models:
        images = images_for(batch or BATCHES.get(model, 32))
        networks = candidates(model, density, offsets)
        cell = {"model": model, "batch": len(images), "density": density}
        steps = {name: training_step(network, images) for name, network in networks.items()}
        yield cell | {"what": "training step", "candidates": measure(steps, seconds)}
        forwards = {name: forward_pass(network, images) for name, network in networks.items()}
        yield cell | {"what": "forward pass", "candidates": measure(forwards, seconds)}


def latency_cells(
    models: Sequence[str], density: float, offsets: Sequence[str], seconds: float
) -> Iterator[Cell]:
    """The forward pass of a single image."""
    for model in models:
        networks = candidates(model, density, offsets)
        steps = {name: forward_pass(network, images_for(1)) for name, network in networks.items()}
        cell = {"model": model, "batch": 1, "density": density, "what": "forward pass"}
        yield cell | {"candidates": measure(steps, seconds)}


def candidates(model: str, density: float, offsets: Sequence[str]) -> dict[str, nn.Module]:
    """The dense network, and one for each offset."""
    return {name: network_for(model, name, density) for name in ("dense", *offsets)}


def network_for(model: str, offset: str, density: float) -> nn.Module:
    """The network under an offset, or `"dense"` with its weights in channels-last order."""
    if offset == "dense":
        return channels_last(build_model(model, _CLASSES, 3))
    with torch.device("meta"):
        network = build_model(model, _CLASSES, 3)
    return sparsify_(network, density, offset=offset)


def channels_last(module: nn.Module) -> nn.Module:
    """The module with its filters in channels-last order."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def images_for(batch: int) -> Tensor:
    """Noise in the shape of CIFAR's images, channels last."""
    return torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)


def training_step(network: nn.Module, images: Tensor) -> Step:
    """Forward, backward and Adam on one batch with drawn labels."""
    labels = torch.randint(_CLASSES, (len(images),))
    optimizer = build_optimizer("adam", parameter_groups(network, 0.0), lr=_RATE)

    def step() -> None:
        network.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def forward_pass(network: nn.Module, images: Tensor) -> Step:
    """Logits, without gradients."""

    def step() -> None:
        network.eval()
        with torch.inference_mode():
            network(images)

    return step
